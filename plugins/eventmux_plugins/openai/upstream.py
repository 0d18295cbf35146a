"""What a service sends, read leniently: a field that is missing or null is None, an unknown one is ignored."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Upstream(BaseModel):
    """Base of the views on what was sent."""

    # What was sent stays out of the error's text: it is somebody's conversation.
    model_config = ConfigDict(hide_input_in_errors=True, coerce_numbers_to_str=True)
