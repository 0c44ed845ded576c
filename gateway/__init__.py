"""The gateway: durable jobs for many endpoints behind one address, in the dialects of several clients.

`models` is a job as data, `store` keeps the rows, `service` does what every dialect needs, `endpoints` knows which endpoint can run a job,
`execution` runs one there, `dispatch` decides when. `assets` are files of clients and of jobs, `files` moves them between here and ComfyUIs. `dialects` are the HTTP routes, `app` is the process.
"""

__all__: list[str] = []
