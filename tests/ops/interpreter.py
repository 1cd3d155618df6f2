"""Triton's interpreter without what it does in vain, which takes up to half of its time.

Before each call of a function it replaces the members of Triton's language by its own; all calls but the first of a
launch find them replaced. And it computes sums, differences and products of integers once more in 64 bits, to see
whether they overflow, though it looks at that only when debugging.
"""

import contextlib
import dataclasses


@contextlib.contextmanager
def quick():
    """A context in which the interpreter computes the same, in less time.

    Versions of Triton that are built otherwise are left as they are.
    """
    with contextlib.ExitStack() as changes:
        with contextlib.suppress(ImportError, AttributeError):
            _patch_once_in_a_launch(changes)
            _leave_overflow_unchecked(changes)
        yield


def _replace(changes, owner, name, value):
    changes.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _patch_once_in_a_launch(changes):
    from triton.runtime import interpreter

    original, new_scope = interpreter._patch_lang, interpreter._LangPatchScope
    # the globals of the functions that a launch has called
    known = set()

    def patch(function):
        if id(function.__globals__) in known:
            return new_scope()
        is_launch = not known
        scope = original(function)
        known.add(id(function.__globals__))
        if is_launch:
            # called at the launch's end; those of the functions that it calls are not
            restore = scope.restore
            scope.restore = lambda: (known.clear(), restore())
        return scope

    _replace(changes, interpreter, "_patch_lang", patch)


def _leave_overflow_unchecked(changes):
    from triton.runtime.interpreter import interpreter_builder as builder

    if not builder.options.debug:
        # what it would find is asserted only when debugging
        _replace(changes, builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
