"""Which device is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core.allocation import Allocation
from ds01_spawner.core.ledger import Ledger
from ds01_spawner.core.model import Device
from ds01_spawner.core.placement import PLACEMENTS, Surroundings, place
from ds01_spawner.testing.devices import dgx_a100, dgx_a100_partly_mig, gpus, mig


def chosen(policy: str, devices: tuple[Device, ...], count: int = 1, **around: object) -> list[str]:
    """Return the UUIDs that a policy takes."""
    return [device.uuid for device in place(policy, devices, count, Surroundings(**around))]


class TestPlacement:
    def test_packed_fills_a_gpu_that_is_in_use(self) -> None:
        """Instances next to used ones go first, so that other GPUs stay whole."""
        devices = (*mig(0, ["3g.20gb"]), *mig(1, ["3g.20gb"]))
        assert chosen("packed", devices) == ["MIG-0-0"]
        assert chosen("packed", devices, neighbours={"GPU-1": 1}) == ["MIG-1-0"]

    def test_spread_prefers_the_gpu_with_the_fewest_users(self) -> None:
        """Instances on a quiet GPU go first."""
        devices = (*mig(0, ["3g.20gb"]), *mig(1, ["3g.20gb"]))
        assert chosen("spread", devices, neighbours={"GPU-0": 1}) == ["MIG-1-0"]

    def test_spread_prefers_the_device_that_rested_longest(self) -> None:
        """Whole GPUs take turns."""
        assert chosen("spread", gpus(3), released={"GPU-0": 5, "GPU-1": 4}) == ["GPU-2"]
        assert chosen("spread", gpus(3), released={"GPU-0": 5, "GPU-1": 4, "GPU-2": 6}) == ["GPU-1"]

    def test_affinity_takes_the_users_last_device(self) -> None:
        """Whoever comes back gets the same device, if it is free."""
        assert chosen("affinity", gpus(4), last=frozenset({"GPU-2"})) == ["GPU-2"]
        assert chosen("affinity", gpus(2), last=frozenset({"GPU-2"})) == ["GPU-0"]

    @pytest.mark.parametrize("policy", PLACEMENTS)
    def test_the_smallest_that_fits_is_taken(self, policy: str) -> None:
        """Whatever the policy, nobody gets a larger device than the others would do."""
        small, large = gpus(1, memory_gib=24), gpus(2, memory_gib=80)[1:]
        assert chosen(policy, (*large, *small), last=frozenset({"GPU-1"})) == ["GPU-0"]

    def test_indices_are_numbers(self) -> None:
        """GPU 2 comes before GPU 10."""
        assert chosen("packed", gpus(12)[::-1], 12)[-1] == "GPU-11"

    @given(
        st.sampled_from(sorted(PLACEMENTS)),
        st.permutations((*dgx_a100_partly_mig(), *dgx_a100()[6:])),
        st.integers(1, 8),
    )
    def test_the_order_of_the_list_does_not_matter(self, policy: str, devices: list[Device], count: int) -> None:
        """The choice is a function of the devices, has the right length and no device twice."""
        first = chosen(policy, tuple(devices), count)
        assert first == chosen(policy, tuple(reversed(devices)), count)
        assert len(set(first)) == count

    def test_an_unknown_policy_is_refused(self) -> None:
        """A typing mistake in the configuration is said at the start."""
        with pytest.raises(ValueError, match="packed, spread, affinity"):
            Allocation(Ledger("lab"), placement="pakced")
