"""The gateway: durable jobs for many endpoints behind one address, in the dialects of several clients.

`models` is a job as data, `store` keeps the rows, `service` does what every dialect needs, `endpoints` knows which endpoint can run a job,
`execution` runs one there, `dispatch` decides when. `dialects` are the HTTP routes, `app` is the process.
"""

__all__: list[str] = []
