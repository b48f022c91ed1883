"""What unit tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from isobit.errors import IsobitError

torch.set_num_threads(1)


@pytest.fixture
def error_of() -> Callable[..., IsobitError]:
    """Call something that must fail, and return its error."""

    def call(function: Callable[..., Any], *arguments: Any, **settings: Any) -> IsobitError:
        with pytest.raises(IsobitError) as caught:
            function(*arguments, **settings)
        return caught.value

    return call


@pytest.fixture
def code_of(error_of: Callable[..., IsobitError]) -> Callable[..., str]:
    """Call something that must fail, and return the code of its error."""
    return lambda function, *arguments, **settings: error_of(function, *arguments, **settings).code
