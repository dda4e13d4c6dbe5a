"""What a site configures reaches the part that it is for."""

from __future__ import annotations

from pathlib import Path

from ds01_spawner.config import Site


def test_the_half_life_of_gpu_hours_reaches_the_queue(tmp_path: Path) -> None:
    """Hours of one half-life ago count half."""
    site = Site(
        hub="lab",
        state_folder=tmp_path,
        runtime_folder=tmp_path,
        people_folder=tmp_path,
        default_image="image",
        trusted_images=(),
        network="lab",
        subnet="",
        simulated_gpus=1,
        limits_file=None,
        placement="packed",
        half_life_seconds=3600.0,
        starts_at_once=1,
        docker={},
        host_lock=None,
        infrastructure=(),
    )
    use = site.allocator._allocation.use
    use.advance(5e9, {"ada": 1.0})
    before = use.hours("ada")
    use.advance(5e9 + 3600.0, {})
    assert use.hours("ada") == before / 2
