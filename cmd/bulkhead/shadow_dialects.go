package main

import (
	"net/http"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/route"
)

// The same questions, answered "not mine" by configsvc --shadow.

func shadowFreeswitchXML(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result, *configsvc.Decision) {
	d, ok := freeswitch.Decide(x, q.Node, time.Now(), q.Body)
	return freeswitch.RenderNotFound(dst), configsvc.Result{}, freeswitchDecision(&d, ok)
}

func shadowFreeswitchCurl(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result, *configsvc.Decision) {
	d, ok := freeswitch.DecideCurl(x, q.Node, time.Now(), q.Query)
	return freeswitch.DeferCurl(q.Query, dst), configsvc.Result{}, freeswitchDecision(&d, ok)
}

func freeswitchDecision(d *freeswitch.Decided, ok bool) *configsvc.Decision {
	if !ok {
		return nil
	}
	return configsvc.NewDecision(&d.Plan, d.Leg, d.SIPCallID, d.Number)
}

// shadowAsteriskRealtime: a look-up of an object begins no call. Nor can one of
// pbx_realtime be compared, since it does not tell which call it is for.
func shadowAsteriskRealtime(_ *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result, *configsvc.Decision) {
	return asterisk.DeferRealtime(strings.TrimPrefix(q.Path, "/asterisk/realtime/"), dst), configsvc.Result{}, nil
}

func shadowAsteriskCall(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result, *configsvc.Decision) {
	dst = asterisk.DeferCall(x, dst)
	d, ok := asterisk.DecideCall(x, q.Node, q.Body, time.Now())
	if !ok {
		return dst, configsvc.Result{}, nil
	}
	return dst, configsvc.Result{}, configsvc.NewDecision(&d.Plan, "", d.SIPCallID, d.Number)
}

// shadowKamailioRoute: the SBC asks which tenant a call is of, and is told that
// it is nobody's. What is done with it, a node asks.
func shadowKamailioRoute(_ *route.Snapshot, _ configsvc.Question, dst []byte) ([]byte, configsvc.Result, *configsvc.Decision) {
	return dst, configsvc.Result{Status: http.StatusNotFound}, nil
}
