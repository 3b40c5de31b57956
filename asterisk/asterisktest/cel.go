package asterisktest

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// cel appends a row of the channel event log as cel_custom does with
// asterisk/conf/cel_custom.conf: the file is opened for each row, and the row
// is one write (capture cel-01 in asterisk/testdata). The lock is held.
func (s *Server) cel(event string, ch *channelState, extra string, now time.Time) {
	if s.cfg.CELFile == "" {
		return
	}
	caller, exten, app := ch.Caller.Number, ch.Dialplan.Exten, ch.Dialplan.App
	switch event {
	case "CHAN_START":
		app = ""
	case "HANGUP":
		if app != "AppDial" {
			app = "" // the dialplan has ended
		}
	}
	var row strings.Builder
	for i, field := range []string{event, fmt.Sprintf("%d.%06d", now.Unix(), now.Nanosecond()/1000), ch.ID, ch.Vars["CHANNEL(linkedid)"],
		ch.Name, ch.Account, caller, exten, ch.Dialplan.Context, app, extra} {
		if i > 0 {
			row.WriteByte(',')
		}
		row.WriteString(`"` + strings.ReplaceAll(field, `"`, `""`) + `"`)
	}
	row.WriteByte('\n')
	f, err := os.OpenFile(s.cfg.CELFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err == nil {
		_, err = f.WriteString(row.String())
		_ = f.Close() // nothing is buffered
	}
	if err != nil {
		s.stats.Unlogged++
	}
}

// hangupExtra is what a HANGUP row says of the end. Only a caller's has how its
// Dial ended.
func hangupExtra(ch *channelState, cause int) string {
	dialled := ""
	if ch.Dialplan.App != "AppDial" && ch.Vars["DIALSTATUS"] != "CHANUNAVAIL" {
		dialled = ch.Vars["DIALSTATUS"]
	}
	b, _ := json.Marshal(struct { // plain fields always marshal
		Cause  int    `json:"hangupcause"`
		Source string `json:"hangupsource"`
		Dialed string `json:"dialstatus"`
	}{cause, ch.Vars["CHANNEL(hangupsource)"], dialled})
	return string(b)
}
