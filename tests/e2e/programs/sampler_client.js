// OpenTelemetry JS with one of its remote samplers: sampler_client.js jaeger|xray ENDPOINT SERVICE.
// A line on standard input, {"spans": 10, "name": "GET /pay", "attributes": {}}, starts so many root spans; the answer is
// how many of them were kept. It ends with its input.
'use strict'
const readline = require('node:readline')
const { NodeTracerProvider, AlwaysOffSampler } = require('@opentelemetry/sdk-trace-node')
const { resourceFromAttributes } = require('@opentelemetry/resources')

const [protocol, endpoint, service] = process.argv.slice(2)
const resource = resourceFromAttributes({ 'service.name': service })

const samplers = {
  jaeger () {
    const { JaegerRemoteSampler } = require('@opentelemetry/sampler-jaeger-remote')
    const initialSampler = new AlwaysOffSampler()
    return new JaegerRemoteSampler({ endpoint, serviceName: service, poolingInterval: 50, initialSampler })
  },
  xray () {
    const { AWSXRayRemoteSampler } = require('@opentelemetry/sampler-aws-xray')
    const sampler = new AWSXRayRemoteSampler({ resource, endpoint, pollingInterval: 300 })
    // Its first question about targets would come after ten seconds; when the next comes, the agent says.
    const poller = sampler.internalXraySampler
    clearInterval(poller.targetPoller)
    poller.targetPollingInterval = 0.2
    poller.startSamplingTargetsPoller()
    return sampler
  }
}

const tracer = new NodeTracerProvider({ resource, sampler: samplers[protocol]() }).getTracer('test')
const input = readline.createInterface({ input: process.stdin })
input.on('line', line => {
  const { spans, name, attributes } = JSON.parse(line)
  let kept = 0
  for (let number = 0; number < spans; number++) {
    const span = tracer.startSpan(name, { root: true, attributes })
    kept += span.spanContext().traceFlags & 1
    span.end()
  }
  console.log(kept)
})
input.on('close', () => process.exit())
