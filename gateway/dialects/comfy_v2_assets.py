"""Comfy API v2 for assets, below ``/api/v2/assets``: files by the BLAKE3 hash of their content, so that known bytes are not sent again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import BodyPartReader, ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded, PayloadTooLarge, YggdrasillError
from yggdrasill.gateway.asset_model import Asset, AssetInUse, check_file_name
from yggdrasill.gateway.dialects.comfy_v2_shapes import PREFIX, Refusal, describe_asset, error_body, error_status_of
from yggdrasill.gateway.http import Http, caller_of, file_headers, json_response, principal_of
from yggdrasill.gateway.service import Gateway, only_of
from yggdrasill.server_ext.bodies import SILENCE_SECONDS, check_length, read_json
from yggdrasill.server_ext.principals import READ, RUN

__all__ = ["AssetDialect"]

_MAX_JSON = 64 << 10
_MAX_FIELDS, _MAX_FIELD = 64, 4096
_ROOM_FOR_FIELDS = 1 << 20
_CHUNK_BYTES = 256 << 10
_HASH = re.compile(r"blake3:([0-9a-f]{64})", re.IGNORECASE)
_TYPE = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,99}", re.ASCII)
_LEAST_LIFETIME, _MOST_LIFETIME = 60, 604_800


class AssetDialect:
    """The routes of assets for ``gateway``."""

    def __init__(self, gateway: Gateway, http: Http) -> None:
        self._gateway, self._http = gateway, http
        self._assets = gateway.files.assets

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes below ``/api/v2/assets``."""
        for methods, path, handler, role in (
            (("POST",), "", self.upload, RUN),
            (("POST",), "/from-hash", self.from_hash, RUN),
            (("HEAD",), "/by-hash/{hash}", self.has_hash, READ),
            (("GET",), "/{asset_id}", self.asset, READ),
            (("DELETE",), "/{asset_id}", self.delete, RUN),
            (("GET", "HEAD"), "/{asset_id}/content", self.content, READ),
        ):
            guarded = self._http.guarded(handler, role, error_body=error_body, status_of=error_status_of)
            for method in methods:
                router.add_route(method, f"{PREFIX}/assets{path}", guarded)

    # -- adding -------------------------------------------------------------------------------------------------

    async def upload(self, request: web.Request) -> web.Response:
        """POST /api/v2/assets"""
        check_length(request, self._assets.largest + _ROOM_FOR_FIELDS)
        if request.content_type != "multipart/form-data":
            raise Refusal(400, "invalid_request", "The body must be multipart/form-data with 'file', 'content_type' and 'file_path'.")
        form = _Form(self._assets.receive)
        try:
            await form.read(request)
            asset, is_new = await self._record(request, form)
        except BaseException as error:
            if form.digest is not None:
                self._assets.discard(form.digest)
            if isinstance(error, (LimitExceeded, PayloadTooLarge)):
                raise Refusal(413, "payload_too_large", error.message) from None
            raise
        return json_response(describe_asset(asset, caller_of(request).url, is_new), 201 if is_new else 200)

    async def _record(self, request: web.Request, form: _Form) -> tuple[Asset, bool]:
        """Return an asset over the bytes of a form. Raise `Refusal` if a field is invalid."""
        principal, digest = principal_of(request), form.digest
        if digest is None:
            raise Refusal(422, "invalid_request", "The form has no part 'file'.")
        if form.expected not in (None, digest):
            raise _mismatch()
        name = _file_name(form.text("file_path") or form.file_name or "upload.bin")
        content_type, lifetime = _content_type(form.text("content_type")), _lifetime(form.text("expires_in"))
        # from here on the store discards the bytes if they are not recorded
        form.digest = None
        return await self._assets.record(
            digest, principal=principal.name, name=name, content_type=content_type, lifetime=lifetime, limit=principal.quota_bytes
        )

    async def from_hash(self, request: web.Request) -> web.Response:
        """POST /api/v2/assets/from-hash"""
        body, principal = await read_json(request, _MAX_JSON), principal_of(request)
        if not isinstance(body, dict):
            raise Refusal(400, "invalid_request", "The body must be a JSON object with 'hash'.")
        found = await self._assets.mint(
            _digest(body.get("hash")),
            principal=principal.name,
            seen_by=only_of(principal),
            name=_file_name(body.get("file_path") or "upload.bin"),
            lifetime=_lifetime(body.get("expires_in")),
            limit=principal.quota_bytes,
        )
        if found is None:
            raise Refusal(404, "blob_not_found", "You have no asset with these bytes here. Upload them.")
        asset, is_new = found
        return json_response(describe_asset(asset, caller_of(request).url, created_new=False), 201 if is_new else 200)

    async def has_hash(self, request: web.Request) -> web.Response:
        """HEAD /api/v2/assets/by-hash/{hash}"""
        found = _HASH.fullmatch(request.match_info["hash"])
        has = found is not None and await self._assets.has_hash(found[1].lower(), only_of(principal_of(request)))
        return web.Response(status=200 if has else 404)

    # -- reading and deleting -----------------------------------------------------------------------------------

    async def _own(self, request: web.Request) -> Asset:
        return await self._assets.get(request.match_info["asset_id"], only_of(principal_of(request)))

    async def asset(self, request: web.Request) -> web.Response:
        """GET /api/v2/assets/{asset_id}"""
        return json_response(describe_asset(await self._own(request), caller_of(request).url))

    async def content(self, request: web.Request) -> web.StreamResponse:
        """GET /api/v2/assets/{asset_id}/content"""
        asset = await self._own(request)
        path = await self._assets.path(asset)
        return web.FileResponse(path, headers=file_headers(asset.name.rpartition("/")[2], asset.content_type))

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /api/v2/assets/{asset_id}"""
        try:
            await self._assets.delete(request.match_info["asset_id"], only_of(principal_of(request)))
        except AssetInUse as error:
            raise Refusal(409, "asset_in_use", error.message) from None
        return web.Response(status=204)


class _Form:
    """The fields of an upload, and the hash of its file, which is stored while it arrives. ``receive`` stores it."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._fields: dict[str, str] = {}
        self.digest: str | None = None
        self.file_name: str | None = None

    def text(self, name: str) -> str | None:
        """Return a field, or None."""
        return self._fields.get(name)

    @property
    def expected(self) -> str | None:
        """The hash that the client declared."""
        given = self._fields.get("expected_hash")
        return None if given is None else _digest(given)

    async def read(self, request: web.Request) -> None:
        """Read all parts.

        Raises:
            Refusal: not a form, or the file has not the declared hash. LimitExceeded: the file is too large. CorruptData: the body stops.
        """
        try:
            reader = await request.multipart()
            for _ in range(_MAX_FIELDS):
                part = await asyncio.wait_for(reader.next(), SILENCE_SECONDS)
                if part is None:
                    return
                if not isinstance(part, BodyPartReader) or "Content-Transfer-Encoding" in part.headers:
                    raise Refusal(400, "invalid_request", "The parts of the form must be fields and one file, without an encoding.")
                if part.name == "file" and self.digest is None:
                    self.file_name = part.filename
                    self.digest = await self._receive_file(part)
                elif part.name:
                    self._fields[part.name] = await _read_field(part)
        except YggdrasillError:
            raise
        except (asyncio.TimeoutError, ValueError, AssertionError, HttpProcessingError, ClientPayloadError):
            raise Refusal(400, "invalid_request", "The body is not a complete form. Send it again.") from None
        raise Refusal(422, "invalid_request", f"The form has more than {_MAX_FIELDS} parts.")

    async def _receive_file(self, part: BodyPartReader) -> str:
        expected = self.expected
        try:
            digest: str = await self._receive(_chunks(part), expected)
        except CorruptData:
            raise _mismatch() from None
        return digest


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await asyncio.wait_for(part.read_chunk(_CHUNK_BYTES), SILENCE_SECONDS):
        yield bytes(chunk)


async def _read_field(part: BodyPartReader) -> str:
    """Return a field of a form as text. Raise `Refusal` for a long one."""
    data = b""
    async for chunk in _chunks(part):
        data += chunk
        if len(data) > _MAX_FIELD:
            raise Refusal(422, "invalid_request", f"The field {str(part.name)[:40]!r} has more than {_MAX_FIELD} bytes.")
    return data.decode("utf-8", "replace")


def _mismatch() -> Refusal:
    return Refusal(409, "hash_mismatch", "The bytes do not have the declared hash. Nothing was stored; send them again.")


def _digest(value: Any) -> str:
    """Return the hexadecimal digits of ``blake3:DIGITS``. Raise `Refusal` for another text."""
    found = _HASH.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise Refusal(422, "invalid_request", "The hash must be 'blake3:' and 64 hexadecimal digits.")
    return found[1].lower()


def _file_name(value: Any) -> str:
    try:
        return check_file_name(value)
    except InvalidArgument as error:
        raise Refusal(422, "invalid_request", error.message) from None


def _content_type(value: str | None) -> str | None:
    """Return a media type without its parameters. Raise `Refusal` for another text."""
    if not value:
        return None
    found = value.partition(";")[0].strip().lower()
    if not _TYPE.fullmatch(found):
        raise Refusal(422, "invalid_request", f"The content_type must be a media type such as 'image/png', got {value[:80]!r}.")
    return found


def _lifetime(value: Any) -> float | None:
    """Return the seconds for which an asset is kept, or None. Raise `Refusal` unless they are from 60 to 604,800."""
    if value is None:
        return None
    text = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
    if not text.isascii() or not text.isdigit() or not _LEAST_LIFETIME <= int(text[:12]) <= _MOST_LIFETIME:
        raise Refusal(422, "invalid_request", f"expires_in must be a number of seconds from {_LEAST_LIFETIME} to {_MOST_LIFETIME}.")
    return float(text)
