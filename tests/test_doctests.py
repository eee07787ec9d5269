"""The standard library's own doctests, typed through a session, give what doctest gives."""

import collections
import difflib
import doctest
import io
import json

import pytest

CHECKER = doctest.OutputChecker()


def doctests_of(module):
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(module) if test.examples]


def what_doctest_gives(module):
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctests_of(module):
        test.globs = dict(test.globs)
        runner.run(test, out=io.StringIO().write)
    return runner.tries - runner.failures, runner.tries


def shown(result):
    """What a person at a prompt would have seen."""
    return result.stdout + (result.text + "\n" if result.text else "")


def is_as_wanted(example, result):
    flags = 0
    for flag, on in example.options.items():
        flags |= flag if on else 0
    if example.exc_msg is None:
        return result.error is None and CHECKER.check_output(example.want, shown(result), flags)
    last = result.error.rstrip().splitlines()[-1] + "\n"
    return CHECKER.check_output(example.exc_msg, last, flags)


@pytest.mark.parametrize("runner", ["plain", "ipython"])
@pytest.mark.parametrize("module", [difflib, collections, json], ids=lambda module: module.__name__)
def test_doctests_typed_through_a_session_give_what_doctest_gives(serve, module, runner):
    wanted, tried = what_doctest_gives(module)
    assert tried > 10
    good = 0
    with serve(runner=runner).connect() as session:
        if runner == "ipython":
            session.run("%pprint off", quiet=True)  # doctest compares with repr()
        session.run(f"import {module.__name__} as tested")
        for test in doctests_of(module):
            session.run(
                "for name in [n for n in globals() if not n.startswith('_') and n != 'tested']: del globals()[name]\n"
                "globals().update({k: v for k, v in vars(tested).items() if not k.startswith('__')})"
            )
            for example in test.examples:
                result = session.run(example.source, quiet=True, check=False)
                good += is_as_wanted(example, result)
    assert (good, tried) == (wanted, tried)
