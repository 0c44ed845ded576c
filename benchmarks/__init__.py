"""What `make bench` measures: one module ``bench_<name>.py`` per subject, each with a function ``run``."""

__all__: list[str] = []
