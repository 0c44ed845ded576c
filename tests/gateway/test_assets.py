"""The store of assets: equal bytes once, a quota, a lifetime, what unfinished jobs need, and what a killed gateway leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded, StorageFailed, UnknownName
from yggdrasill.gateway.asset_model import Asset, AssetBounds, AssetInUse, Made, check_file_name, content_type_of
from yggdrasill.gateway.assets import AssetStore
from yggdrasill.gateway.database import Database
from yggdrasill.gateway.models import PROMPT, Job, NewJob
from yggdrasill.gateway.store import Bounds, JobStore
from yggdrasill.gateway.tables import assets
from yggdrasill.gateway.work import Claim, Work
from yggdrasill.protocol.states import COMPLETED


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 7):
        yield data[start : start + 7]


class Assets:
    """A store of assets with its database."""

    def __init__(self, folder: Path, quota: int = 10_000, lifetime: float = 1000.0, largest: int = 10_000, url: str | None = None) -> None:
        self.folder = folder
        self.database = Database(url or f"sqlite:///{folder / 'rows.sqlite'}")
        self.store = AssetStore(self.database, folder / "assets", AssetBounds(quota, lifetime, largest))
        self.jobs, self.work = JobStore(self.database, Bounds()), Work(self.database)

    def close(self) -> None:
        self.store.close()
        self.database.close()

    def add(
        self, data: bytes, name: str = "x.bin", principal: str = "a", expected: str | None = None, **options: Any
    ) -> tuple[Asset, bool]:
        async def act() -> tuple[Asset, bool]:
            digest = await self.store.receive(chunks(data), expected)
            return await self.store.record(digest, principal=principal, name=name, **options)

        return asyncio.run(act())

    def read(self, asset_id: str, seen_by: str | None = None) -> bytes:
        async def act() -> bytes:
            return (await self.store.path(await self.store.get(asset_id, seen_by))).read_bytes()

        return asyncio.run(act())

    def job(self, *used: str) -> Job:
        """Return a running job with these inputs."""
        new = NewJob(PROMPT, "target", {}, "comfy_v2", "a", assets=used)
        job, _ = self.jobs.submit(new).result()
        (taken,) = self.work.claim([Claim(job, "easel", "gateway", 100.0)]).result()
        return taken[0]

    def age(self, asset_id: str, **values: float) -> None:
        statement = assets.update().where(assets.c.asset_id == asset_id).values(**values)
        self.database.write(lambda transaction: transaction.execute(statement)).result()

    def files(self) -> set[str]:
        self.database.write(lambda transaction: None).result()
        return {path.name for path in (self.folder / "assets" / "objects").rglob("*") if path.is_file()}


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Assets]:
    found = Assets(tmp_path)
    yield found
    found.close()


def test_equal_bytes_are_one_file_and_the_same_name_is_the_same_asset(kept: Assets) -> None:
    first, is_new = kept.add(b"bytes", "a.png")
    again, is_new_again = kept.add(b"bytes", "a.png")
    renamed, _ = kept.add(b"bytes", "b.txt")
    foreign, is_new_to_them = kept.add(b"bytes", "a.png", principal="b")
    assert (is_new, is_new_again, is_new_to_them) == (True, False, True)
    assert again.asset_id == first.asset_id
    assert len({first.asset_id, renamed.asset_id, foreign.asset_id}) == 3
    assert (first.content_type, renamed.content_type, first.hash) == ("image/png", "text/plain", blake3(b"bytes").hexdigest())
    assert kept.files() == {first.hash}


def test_an_asset_of_another_principal_is_unknown(kept: Assets) -> None:
    asset, _ = kept.add(b"bytes")
    assert kept.read(asset.asset_id, "a") == kept.read(asset.asset_id) == b"bytes"
    with pytest.raises(UnknownName, match="Unknown asset"):
        kept.read(asset.asset_id, "b")
    assert not asyncio.run(kept.store.has_hash(asset.hash, "b"))
    minted = asyncio.run(kept.store.mint(asset.hash, principal="b", seen_by="b", name="x", lifetime=None, limit=None))
    assert minted is None
    with pytest.raises(UnknownName):
        asyncio.run(kept.store.delete(asset.asset_id, "b"))
    assert kept.files() == {asset.hash}


def test_the_least_recently_used_assets_make_room(tmp_path: Path) -> None:
    kept = Assets(tmp_path, quota=300)
    found = [kept.add(bytes([number]) * 100, f"{number}")[0] for number in range(3)]
    for number, asset in enumerate(found):
        kept.age(asset.asset_id, used=1000.0 + number)
    kept.read(found[0].asset_id)
    newest, _ = kept.add(b"n" * 150)
    assert kept.files() == {found[0].hash, newest.hash}
    for lost in found[1:]:
        with pytest.raises(UnknownName):
            kept.read(lost.asset_id)
    kept.close()


def test_inputs_and_outputs_of_unfinished_jobs_are_kept(tmp_path: Path) -> None:
    kept = Assets(tmp_path, quota=250, lifetime=1000.0)
    used, _ = kept.add(b"u" * 100, "used")
    job = kept.job(used.asset_id)
    made, _ = kept.add(b"m" * 100, "made", made=Made(job, "9", 0, "output//made"))
    assert asyncio.run(kept.store.outputs(job)) == [made]
    with pytest.raises(StorageFailed, match="unfinished jobs use up the quota"):
        kept.add(b"x" * 100, "more")
    assert kept.files() == {used.hash, made.hash}
    for asset in (used, made):
        kept.age(asset.asset_id, expires=1.0)
        with pytest.raises(UnknownName):
            kept.read(asset.asset_id)
    assert asyncio.run(kept.store.sweep()) == 0
    kept.age(used.asset_id, expires=1e12)
    with pytest.raises(AssetInUse):
        asyncio.run(kept.store.delete(used.asset_id, "a"))
    kept.work.finish(job, COMPLETED, output={}).result()
    assert asyncio.run(kept.store.sweep()) == 1
    asyncio.run(kept.store.delete(used.asset_id, "a"))
    assert kept.files() == set()
    kept.close()


def test_an_output_is_one_asset_however_often_it_is_stored_and_belongs_to_its_attempt(kept: Assets) -> None:
    job = kept.job()
    made = Made(job, "9", 0, "output//a.png")
    first, _ = kept.add(b"one", "a.png", made=made)
    again, _ = kept.add(b"two", "a.png", made=made)
    assert (again.asset_id, again.hash, first.expires) == (first.asset_id, first.hash, again.expires)
    assert kept.files() == {first.hash}
    assert asyncio.run(kept.store.outputs(replace(job, call_key="another"))) == []
    assert asyncio.run(kept.store.outputs(replace(job, call_key=None))) == []


def test_the_rules_hold_on_postgresql_too(tmp_path: Path, postgres: str) -> None:
    kept = Assets(tmp_path, quota=250, url=postgres)
    first, is_new = kept.add(b"u" * 100, "bild \u00fc.png")
    again, is_new_again = kept.add(b"u" * 100, "bild \u00fc.png")
    assert (is_new, is_new_again, again.asset_id) == (True, False, first.asset_id)
    job = kept.job(first.asset_id)
    made, _ = kept.add(b"m" * 100, "made", made=Made(job, "9", 0, "output//made"))
    assert asyncio.run(kept.store.outputs(job)) == [made]
    with pytest.raises(StorageFailed, match="unfinished jobs use up the quota"):
        kept.add(b"x" * 100, "more")
    with pytest.raises(AssetInUse):
        asyncio.run(kept.store.delete(first.asset_id, "a"))
    assert kept.jobs.ahead_of(job).result() == 0
    listed = kept.jobs.newest(dialect="comfy_v2", containing=['"no":"label"'], before=1e12, last="x", limit=10).result()
    assert listed == []
    kept.work.finish(job, COMPLETED, output={}).result()
    kept.age(first.asset_id, expires=1.0)
    assert asyncio.run(kept.store.sweep()) == 1
    assert asyncio.run(kept.store.has_hash(made.hash, "a"))
    more, _ = kept.add(b"x" * 200, "more")
    assert kept.files() == {more.hash}
    kept.close()


def test_a_reference_extends_the_lifetime_and_never_shortens_it(kept: Assets) -> None:
    long, _ = kept.add(b"bytes", lifetime=5000.0)
    short, _ = kept.add(b"bytes", lifetime=60.0)
    assert short.expires == long.expires
    longer = asyncio.run(kept.store.mint(long.hash, principal="a", seen_by="a", name="x.bin", lifetime=9000.0, limit=None))
    assert longer is not None
    assert longer[0].expires > long.expires + 3000


def test_the_limit_of_a_principal_holds(kept: Assets) -> None:
    kept.add(b"x" * 80, "a", limit=100)
    with pytest.raises(StorageFailed, match="'a' would exceed 100 bytes"):
        kept.add(b"y" * 80, "b", limit=100)
    kept.add(b"y" * 80, "b", principal="b", limit=100)
    assert len(kept.files()) == 2


def test_bytes_that_another_upload_has_brought_outlive_a_refused_one(kept: Assets) -> None:
    first, second = (asyncio.run(kept.store.receive(chunks(b"z" * 80))) for _ in range(2))
    assert first == second
    with pytest.raises(StorageFailed, match="'a' would exceed 10 bytes"):
        asyncio.run(kept.store.record(first, principal="a", name="a", limit=10))
    kept.files()
    asset, _ = asyncio.run(kept.store.record(second, principal="b", name="b", limit=100))
    assert kept.files() == {asset.hash}
    third = asyncio.run(kept.store.receive(chunks(b"w" * 80)))
    kept.store.discard(third)
    kept.files()
    assert kept.files() == {asset.hash}


def test_wrong_and_too_large_bytes_are_not_stored(tmp_path: Path) -> None:
    kept = Assets(tmp_path, largest=100)
    with pytest.raises(CorruptData):
        kept.add(b"bytes", expected=blake3(b"other").hexdigest())
    with pytest.raises(LimitExceeded):
        kept.add(b"x" * 101)
    assert kept.files() == set()
    kept.close()


def test_files_without_a_row_are_removed(kept: Assets) -> None:
    asset, _ = kept.add(b"kept")
    # as a gateway leaves it that is killed before it records the bytes
    orphan = asyncio.run(kept.store.files.put_stream(chunks(b"orphan")))
    assert kept.files() == {asset.hash, orphan}
    assert asyncio.run(kept.store.remove_orphans(older_than=3600.0)) == 0
    assert asyncio.run(kept.store.remove_orphans(older_than=-10.0)) == 1
    assert kept.files() == {asset.hash}


def test_bytes_that_were_removed_or_damaged_are_unknown_and_can_be_stored_again(kept: Assets) -> None:
    asset, _ = kept.add(b"bytes")
    path = kept.folder / "assets" / "objects" / asset.hash[:2] / asset.hash[2:4] / asset.hash
    path.unlink()
    with pytest.raises(UnknownName):
        kept.read(asset.asset_id)
    again, _ = kept.add(b"bytes")
    assert (again.asset_id, kept.read(asset.asset_id)) == (asset.asset_id, b"bytes")


def test_a_folder_of_another_database_is_refused(kept: Assets, tmp_path: Path) -> None:
    other = Database(f"sqlite:///{tmp_path / 'other.sqlite'}")
    with pytest.raises(InvalidArgument, match="another database"):
        AssetStore(other, kept.folder / "assets", AssetBounds())
    other.close()
    second = AssetStore(kept.database, kept.folder / "assets", AssetBounds())
    asset, _ = kept.add(b"bytes")
    assert asyncio.run(second.has_hash(asset.hash, "a"))
    second.close()


_acts = st.tuples(
    st.sampled_from(["add", "add", "add", "delete", "expire", "use"]), st.sampled_from(b"abcde"), st.integers(0, 200), st.sampled_from("ab")
)


@settings(deadline=None, max_examples=25)
@given(st.lists(_acts, min_size=1, max_size=12))
def test_the_folder_has_the_bytes_of_the_rows_within_the_quota(acts: list[tuple[str, int, int, str]]) -> None:
    quota = 400
    with tempfile.TemporaryDirectory() as name:
        kept = Assets(Path(name), quota=quota, largest=200)
        held: set[str] = set()
        try:
            for act, letter, size, principal in acts:
                rows = sorted(rows_of(kept))
                if act == "add":
                    try:
                        asset, _ = kept.add(bytes([letter]) * size, principal=principal)
                        assert kept.read(asset.asset_id) == bytes([letter]) * size
                    except StorageFailed:
                        assert held
                elif rows:
                    change(kept, act, rows[size % len(rows)], held)
                present = rows_of(kept)
                assert held <= present.keys()
                assert kept.files() == {digest for digest, _ in present.values()}
                assert sum(dict(present.values()).values()) <= quota
        finally:
            kept.close()


def change(kept: Assets, act: str, row: str, held: set[str]) -> None:
    """Use an asset as an input, delete it, or let its lifetime end. ``held`` are those that unfinished jobs need."""
    if act == "use":
        held.add(row)
        kept.job(row)
    elif act == "delete":
        with pytest.raises(AssetInUse) if row in held else contextlib.nullcontext():
            asyncio.run(kept.store.delete(row, None))
    elif row not in held:
        kept.age(row, expires=1.0)
        asyncio.run(kept.store.sweep())


def rows_of(kept: Assets) -> dict[str, tuple[str, int]]:
    statement = sa.select(assets.c.asset_id, assets.c.hash, assets.c.nbytes)
    rows = kept.database.read(lambda transaction: transaction.execute(statement).all()).result()
    return {row[0]: (row[1], row[2]) for row in rows}


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/a", "a//b", "a\\..\\b", "a\nb", "a/", "x" * 501, 3, None])
def test_names_that_leave_a_folder_are_refused(name: object) -> None:
    with pytest.raises(InvalidArgument, match="relative path"):
        check_file_name(name)


def test_names_and_their_media_types() -> None:
    assert check_file_name("models/vae/x.safetensors") == "models/vae/x.safetensors"
    found = [content_type_of(name) for name in ("a.PNG", "b.glb", "c.webm", "d.flac", "e", "f.unknown")]
    assert found == ["image/png", "model/gltf-binary", "video/webm", "audio/flac", *["application/octet-stream"] * 2]
