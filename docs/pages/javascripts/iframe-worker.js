// Runs the search of this site in an iframe where the pages are opened from disk: there, browsers start no workers.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => urls.reduce((before, one) => before.then(() => load(inside, one)), Promise.resolve())
      this.inside = inside
      this.ready = load(inside, url)
    }
    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {}
  }
  window.Worker = window.IFrameWorker
}

function load(inside, url) {
  return new Promise((done, failed) => {
    const script = inside.document.createElement("script")
    script.src = url
    script.onload = done
    script.onerror = () => failed(new Error(`${url} cannot be loaded`))
    inside.document.body.append(script)
  })
}
