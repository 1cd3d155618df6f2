import locale
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import SimpleITK as sitk

from vnet_fast.io import itk


def test_one_thread_at_a_time_has_the_locale():
    """Two threads that change the locale at once crash the process now and then."""
    inside, most, barrier = [], [], threading.Barrier(4)

    def use(number):
        barrier.wait(10)
        for _ in range(200):
            with itk.kept_locale():
                inside.append(number)
                most.append(len(inside))
                # lets other threads run
                time.sleep(1e-4)
                inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert set(most) == {1}


def test_the_locale_is_restored_after_an_error():
    def fail():
        with itk.kept_locale():
            locale.setlocale(locale.LC_CTYPE, "C")
            raise RuntimeError("unreadable")

    with pytest.raises(RuntimeError, match="unreadable"):
        fail()
    assert locale.setlocale(locale.LC_CTYPE) == itk.ENCODING
    # the lock is free again
    with itk.kept_locale():
        pass


@pytest.mark.parametrize("warns", [False, True])
def test_warnings_of_itk_are_off_only_while_files_are_used(warns):
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    try:
        sitk.ProcessObject.SetGlobalWarningDisplay(warns)
        with itk.kept_locale():
            assert not sitk.ProcessObject.GetGlobalWarningDisplay()
        assert sitk.ProcessObject.GetGlobalWarningDisplay() == warns
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
