"""Laws for tiers, shipped so that a tier of your own can be put under them.

Subclass :class:`TierLaws`, say how your tier is made and how to reach its storage around it, and let pytest run it::

    class TestMyTier(TierLaws):
        def make_tier(self, layout, view, place):
            return MyTier(layout, view)

        async def raw_read(self, tier, key): ...

Needs ``pip install asyncoffload[testing]``.
"""

import pytest

pytest.register_assert_rewrite("asyncoffload.testing.tier_laws", "asyncoffload.testing.tier_model")

from asyncoffload.testing.kills import StoringChild  # noqa: E402
from asyncoffload.testing.slots import Slots, content_of, small_layout  # noqa: E402
from asyncoffload.testing.tier_hooks import TierHooks  # noqa: E402
from asyncoffload.testing.tier_laws import TierLaws  # noqa: E402

__all__ = ["Slots", "StoringChild", "TierHooks", "TierLaws", "content_of", "small_layout"]
