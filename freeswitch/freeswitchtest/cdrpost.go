package freeswitchtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// CDRConfig is mod_json_cdr's (facts 20 to 28 of the captures). The zero value
// loads no such module.
type CDRConfig struct {
	// URLs take the records, the next one when one fails.
	URLs []string
	// Retries after the first attempt, each after Delay.
	Retries int
	Delay   time.Duration
	// Timeout of one attempt; 0: none, as in a real one.
	Timeout time.Duration
	// ErrLogDir gets the records that no URL took. It is written in place, so
	// that half a file can be seen, and never read again. Empty: they are lost.
	ErrLogDir string
	// PlainValues leaves the variables' values as they are (encode-values
	// false); by default they are percent-encoded.
	PlainValues bool
}

// postCDR does what mod_json_cdr does in the call's own thread, before
// CHANNEL_HANGUP_COMPLETE (fact 24, capture cdr/failures.txt).
func (l *leg) postCDR() {
	cfg := &l.n.cfg.CDR
	if len(cfg.URLs) == 0 {
		return
	}
	body := l.cdrJSON()
	client := &http.Client{Timeout: cfg.Timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	for try := 0; try <= cfg.Retries; try++ {
		if try > 0 {
			select {
			case <-l.n.stopped:
				// A stop does not wait for retries; the file is written at once.
				try = cfg.Retries
			case <-time.After(cfg.Delay):
			}
		}
		if postedCDR(client, cfg.URLs[try%len(cfg.URLs)], l.uuid, body) {
			l.posted = true
			return
		}
	}
	if cfg.ErrLogDir == "" {
		return
	}
	file := filepath.Join(cfg.ErrLogDir, l.uuid+".cdr.json")
	if err := os.WriteFile(file, append(body, '\n'), 0o640); err != nil {
		l.n.log.Error("json_cdr: backup file", "err", err)
	}
}

func postedCDR(client *http.Client, url, uuid string, body []byte) bool {
	req, err := http.NewRequest(http.MethodPost, url+"?uuid="+uuid, bytes.NewReader(body))
	if err != nil {
		return false
	}
	req.Header.Set("User-Agent", "freeswitch-json/1.0")
	req.Header.Set("Accept", "*/*")
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode/100 == 2
}

// cdrJSON is the document of capture cdr/json-bridge-2-a-leg.txt. The flags
// and caps of channel_data, app_log and the extension of callflow are left out.
func (l *leg) cdrJSON() []byte {
	b := fmt.Appendf(nil, `{"core-uuid":%s,"switchname":%s,"channel_data":{"state":"CS_REPORTING","direction":%s,"state_number":"11"},"variables":{`,
		quoted(l.n.hub.core), quoted(l.n.cfg.ID), quoted(l.direction()))
	for i, v := range l.vars {
		if i > 0 {
			b = append(b, ',')
		}
		value := v.text()
		if !l.n.cfg.CDR.PlainValues {
			value = string(appendEncoded(nil, value))
		}
		b = append(append(append(b, quoted(v.name)...), ':'), quoted(value)...)
	}
	p, t := &l.prof, &l.prof.t
	us := func(at int64) string { return quoted(strconv.FormatInt(at, 10)) }
	return fmt.Appendf(b, `},"callflow":[{"dialplan":"XML","profile_index":"1","caller_profile":{"username":%s,"dialplan":"XML","caller_id_name":%s,"ani":%s,"aniii":"","caller_id_number":%s,"network_addr":%s,"rdnis":"","destination_number":%s,"uuid":%s,"source":"mod_sofia","context":%s,"chan_name":%s},"times":{"created_time":%s,"profile_created_time":%s,"progress_time":%s,"progress_media_time":%s,"answered_time":%s,"bridged_time":%s,"last_hold_time":"0","hold_accum_time":"0","hangup_time":%s,"resurrect_time":"0","transfer_time":"0"}}]}`,
		quoted(p.username), quoted(p.cidName), quoted(p.ani), quoted(p.cid), quoted(p.addr), quoted(p.dest), quoted(l.uuid), quoted(p.context), quoted(p.channel),
		us(t.created), us(t.created), us(t.progress), us(t.progressMedia), us(t.answered), us(t.bridged), us(t.hangup))
}

func quoted(s string) string {
	b, _ := json.Marshal(s) // a string always marshals
	return string(b)
}
