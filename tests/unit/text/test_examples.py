"""The worked examples in docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import megatron_huatuo.corpus
import megatron_huatuo.text
import megatron_huatuo.unify

MODULES = [
    found.name
    for package in (megatron_huatuo.text, megatron_huatuo.corpus, megatron_huatuo.unify)
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    assert sum(bool(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name))) >= 8
