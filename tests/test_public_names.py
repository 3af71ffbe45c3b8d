"""Every public name says what it is, and what each argument and each field means."""

import dataclasses
import inspect
import re

import pytest

import fxquant
import fxquant.errors

FUNCTIONS = [name for name in fxquant.__all__ if inspect.isfunction(getattr(fxquant, name))]
RECORDS = [
    name
    for name in fxquant.__all__
    if inspect.isclass(getattr(fxquant, name)) and dataclasses.is_dataclass(getattr(fxquant, name))
]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_tells_of_each_argument(name: str):
    function = getattr(fxquant, name)
    text = function.__doc__ or ""
    assert set(inspect.signature(function).parameters) <= names_in(text), text


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_tells_of_each_field(name: str):
    record = getattr(fxquant, name)
    text = record.__doc__ or ""
    fields = {field.name for field in dataclasses.fields(record) if not field.name.startswith("_")}
    assert fields <= names_in(text), text


def test_all_others_have_words_too():
    errors = [value for value in vars(fxquant.errors).values() if inspect.isclass(value)]
    for value in [*errors, *(getattr(fxquant, name) for name in fxquant.__all__)]:
        if callable(value):
            assert value.__doc__, value
