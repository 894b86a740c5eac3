"""The third party that takes the money: not ours, so no stress traffic may ever reach it.

It does not know markers; its access log tells whether one came all the same.
"""

import asyncio
import secrets

import names
from aiohttp import web
from service import arguments, listening, serve


async def pay(request: web.Request) -> web.Response:
    body = await request.json()
    if not body.get(names.CARD) or body.get(names.AMOUNT, 0) <= 0:
        return web.json_response({names.ERROR: "declined"}, status=402)
    await asyncio.sleep(0.008)
    return web.json_response(
        {names.RECEIPT: f"rcp_{secrets.token_hex(10)}", names.STATUS: "approved", names.AMOUNT: body[names.AMOUNT]}
    )


def main() -> None:
    options = listening(arguments(__doc__ or "")).parse_args()
    app = web.Application()
    app.router.add_post("/payments", pay)
    asyncio.run(serve(app, options))


if __name__ == "__main__":
    main()
