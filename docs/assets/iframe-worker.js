// Search runs in a worker, and browsers start none for a page that is opened from a folder. There, a hidden frame stands
// for one: it runs the same script, and what either side posts arrives at the other. By this file's name the site's builder
// knows that it need not have one fetched from the network.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    onmessage = null
    onerror = null

    constructor(url) {
      super()
      this.frame = document.body.appendChild(document.createElement("iframe"))
      this.frame.hidden = true
      const inside = this.frame.contentWindow
      inside.postMessage = (data) => this.deliver(this, structuredClone(data))
      const script = inside.document.createElement("script")
      script.src = url
      script.onerror = () => this.dispatchEvent(new Event("error")) && this.onerror?.(new Event("error"))
      this.loaded = new Promise((done) => (script.onload = done))
      inside.document.body.append(script)
    }

    postMessage(data) {
      const copy = structuredClone(data)
      this.loaded.then(() => this.deliver(this.frame.contentWindow, copy))
    }

    terminate() {
      this.frame.remove()
    }

    deliver(target, data) {
      const message = new MessageEvent("message", { data })
      if (target === this) this.onmessage?.(message)
      target?.dispatchEvent(message)
    }
  }
}
