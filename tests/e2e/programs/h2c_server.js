// HTTP/2 without TLS on a free port. On standard input any line asks it what it served; it ends with its input.
// A request is answered with 200, or with the number that its path ends in: /status/503.
'use strict'
const http2 = require('node:http2')
const readline = require('node:readline')

const operations = {}
const errors = {}
const count = (counts, name) => { counts[name] = (counts[name] ?? 0) + 1 }

const server = http2.createServer()
server.on('stream', (stream, headers) => {
  const path = headers[':path']
  const status = Number(/^\/status\/(\d+)$/.exec(path)?.[1] ?? 200)
  count(operations, path)
  if (status >= 400) count(errors, String(status))
  stream.resume()
  stream.respond({ ':status': status, 'content-type': 'application/json' })
  stream.end('{"paid": 1}')
})
// The argument is the path of a Unix socket.
const where = process.argv[2] ? { path: process.argv[2] } : { host: '127.0.0.1', port: 0 }
server.listen(where, () => {
  const address = server.address()
  console.log(JSON.stringify({ port: typeof address === 'string' ? 0 : address.port }))
})
const lines = readline.createInterface({ input: process.stdin })
lines.on('line', () => console.log(JSON.stringify({ operations, errors })))
lines.on('close', () => process.exit(0))
