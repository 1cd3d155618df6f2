from vnet_fast import doctor
from vnet_fast.diagnostics.checks import Findings


def test_the_exit_code_says_whether_something_is_wrong(run_verb, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda device: Findings(["torch 2"], []))
    code, out, err = run_verb(doctor, "--device", "cpu")
    assert (code, err) == (0, "")
    assert out == "torch 2\n\neverything that was tried works on cpu\n"
    monkeypatch.setattr(doctor, "examine", lambda device: Findings(["torch 2"], ["no compiler. Install one"]))
    code, out, err = run_verb(doctor)
    assert (code, err) == (1, "")
    assert out.splitlines()[-1] == "wrong: no compiler. Install one"
