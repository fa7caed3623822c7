"""An unprivileged user attacks a running agent, and an honest application beside him obeys at all times.

The kinds, and where each is attacked as another user or as what he sends; those of this folder run the programs of
`bench/attacks.py`, for as long as it takes to see that everybody else is served. `bench/hardening` runs the same ones
for longer and has the bars in seconds.

- Time and memory of the agent: event streams that nobody reads, bodies and heads that do not end, idle connections,
  clients that ask without pause, made-up clients of X-Ray, environments of megabytes, exec without end, messages and
  garbage on the applications' socket, tables of headers: test_attacks.py.
- Shares of rows, connections and libraries, refusals that are logged: test_attacks.py.
- Names that others have, counts that are lies, names that are no text, reservoirs: test_neighbours.py.
- A lock or a file that others could take, folders of somebody else: tests/spandial_agent/test_lock.py.
- A library that is another one by the time it is attached to, or somebody else's:
  tests/spandial_agent/capture/test_mappings.py, tests/in_kernel/test_links.py.
- What can be done with the descriptors that hooks get: tests/spandial_agent/table/unprivileged_reader.py,
  tests/spandial_agent/table/test_rates.py, tests/in_kernel/test_frozen_table.py.
- A pid that somebody else has by now: tests/spandial_agent/discovery/test_registrar_identity.py.
- An agent that is none: tests/spandial/test_peer.py, tests/spandial/test_link_strangers.py.
- Pages in a browser: tests/spandial_api/test_origins.py, tests/spandial_agent/serving/test_relay.py.
- Requests of others: tests/spandial_agent/records/test_redaction.py, tests/spandial_api/test_auth.py.
"""
