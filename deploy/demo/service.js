// A real HTTP service that is not Python and has no hook: listens on PORT, or on the Unix socket PORT names.
const http = require("http");
const where = process.env.PORT;
http
  .createServer((request, response) => {
    response.setHeader("content-length", "2");
    response.end("{}");
  })
  .listen(/^\d+$/.test(where) ? { port: Number(where), host: "::" } : where);
process.on("SIGTERM", () => process.exit()); // as the first process of a container it would be ignored
