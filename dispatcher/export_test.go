package dispatcher

import "net/http"

// AskAgentsBy has a Watch that does not run yet ask agents by another way than
// the network, which knows no simulated time.
func (w *Watch) AskAgentsBy(way http.RoundTripper) { w.client.Transport = way }
