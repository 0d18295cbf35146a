"""What others test with who write a part for eventmux. Only tests import it: it needs pytest."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("eventmux.testing.store")  # so that a failure says what was compared
