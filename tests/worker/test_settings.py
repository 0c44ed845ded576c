"""Settings from the environment, and the number of jobs that memory allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from yggdrasill.errors import InvalidArgument
from yggdrasill.worker.memory import free_memory, job_slots
from yggdrasill.worker.settings import Settings


def test_the_defaults_are_those_of_the_documentation() -> None:
    found = Settings.from_environment({})
    assert (found.output_mode, found.gcs.prefix, found.gcs.retries, found.gcs.retry_base_sleep) == ("gcs", "comfy/outputs", 3, 0.5)
    assert (found.gcs.public, found.gcs.signed_url_ttl, found.gcs.validate) == (False, 0, True)
    assert found.models_dir == found.comfy_home / "models"
    assert found.concurrency == 1


def test_every_variable_is_read() -> None:
    found = Settings.from_environment(
        {
            "OUTPUT_MODE": "s3", "GCS_BUCKET": "b", "GCS_RETRIES": "0", "GCS_PUBLIC": "TRUE", "GCS_VALIDATE": "no", "GCS_SIGNED_URL_TTL": "60",
            "GCS_PROJECT": "p", "COMFY_HOME": "/opt/ComfyUI", "MODELS_DIR": "/opt/models", "RUNPOD_POD_ID": "a/b", "PRELOAD_MODELS": "vae/a, loras/b",
            "BUCKET_ENDPOINT_URL": "https://x", "BUCKET_ACCESS_KEY_ID": "k", "BUCKET_SECRET_ACCESS_KEY": "planted-secret", "COMFY_ARGS": "--cpu --x 1",
        }
    )  # fmt: skip
    assert (found.output_mode, found.gcs.bucket, found.gcs.retries, found.gcs.public, found.gcs.validate) == ("s3", "b", 0, True, False)
    assert (found.gcs.signed_url_ttl, found.gcs.project, found.models_dir) == (60, "p", Path("/opt/models"))
    assert (found.worker_id, found.preload, found.comfy_args) == ("a-b", ("vae/a", "loras/b"), ("--cpu", "--x", "1"))
    assert "planted" not in repr(found)


@pytest.mark.parametrize(
    "name, value",
    [
        ("OUTPUT_MODE", "ftp"),
        ("GCS_RETRIES", "many"),
        ("GCS_RETRIES", "1.5"),
        ("GCS_RETRIES", "-1"),
        ("GCS_PUBLIC", "perhaps"),
        ("WORKER_CONCURRENCY", "0"),
        ("GCS_RETRY_BASE_SLEEP", "inf"),
    ],
)
def test_a_wrong_value_is_named_by_its_variable(name: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        Settings.from_environment({name: value})


@pytest.mark.parametrize("most, running, free, slots", [(4, 0, 10, 2), (4, 2, 10, 4), (4, 0, 1, 1), (1, 5, 100, 1), (4, 0, None, 4)])
def test_jobs_run_at_once_as_far_as_memory_is_free(most: int, running: int, free: int | None, slots: int) -> None:
    assert job_slots(most, 5, running, free) == slots


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\n", encoding="ascii")
    assert free_memory(tmp_path, tmp_path / "meminfo") == 50 * 1024
    (tmp_path / "memory.max").write_text("30000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("10000\n", encoding="ascii")
    assert free_memory(tmp_path, tmp_path / "meminfo") == 20_000
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert free_memory(tmp_path, tmp_path / "meminfo") == 50 * 1024
