package freeswitchtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// maxAnswer is mod_xml_curl's response-max-bytes default.
const maxAnswer = 1 << 20

// ask asks the bindings in order (capture failures/xml_curl-answers.txt:
// "two bindings for dialplan, the first server down: the second one is asked").
// Nil means that none decided, so that the static configuration does.
func (n *Node) ask(ctx context.Context, form []byte) *element {
	for _, url := range n.cfg.XMLURLs {
		doc, err := n.fetchXML(ctx, url, form)
		if err != nil {
			// A real one logs the whole form as well, at ERR.
			n.log.Error("xml_curl: no usable answer, the next binding is asked", "url", url, "err", err)
			continue
		}
		// "not found" asks the next one, silently (xml_curl-answers.txt number 2001).
		if r := doc.child("section", "result").child("result", ""); r != nil && r.attr("status") == "not found" {
			continue
		}
		return doc
	}
	return nil
}

// fetchXML makes one request over a TCP connection of its own (capture
// xml_curl/connections-50-calls.txt). Only status 200 counts, whatever the
// Content-Type (failures/xml_curl-answers.txt).
func (n *Node) fetchXML(ctx context.Context, url string, form []byte) (*element, error) {
	if n.cfg.XMLTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, n.cfg.XMLTimeout)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(form))
	if err != nil {
		return nil, fmt.Errorf("ask by xml_curl: %w", err)
	}
	// The headers of capture xml_curl/dialplan-bridge.txt, and no others.
	req.Header.Set("User-Agent", "freeswitch-xml/1.0")
	req.Header.Set("Accept", "*/*")
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if n.cfg.XMLUser != "" {
		// Sent unasked: capture xml_curl/dialplan-method-GET-basic-auth.txt.
		req.SetBasicAuth(n.cfg.XMLUser, n.cfg.XMLPassword)
	}
	// A transport of its own gives a new connection without "Connection: close",
	// which a real one does not send.
	tr := &http.Transport{DisableCompression: true, ResponseHeaderTimeout: 0, IdleConnTimeout: time.Second}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Do(req) // follows 10 redirects, as a real one
	if err != nil {
		return nil, fmt.Errorf("ask by xml_curl: %w: %w", bulkhead.Unavailable, err)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if cerr := res.Body.Close(); err == nil {
		err = cerr
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer of xml_curl: %w: %w", bulkhead.Unavailable, err)
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("received HTTP error %d: %w", res.StatusCode, bulkhead.Unavailable)
	case len(body) > maxAnswer:
		return nil, fmt.Errorf("oversized answer, more than %d bytes: %w", maxAnswer, bulkhead.Invalid)
	}
	if bytes.Contains(body, []byte(`cmd="exec"`)) {
		n.log.Error("xml_curl: the answer holds an X-PRE-PROCESS exec, which a FreeSWITCH would run", "url", url)
	}
	return parseXML(preprocess(body, n.globals))
}
