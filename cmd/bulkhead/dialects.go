package main

import (
	"net/http"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

// dialects are the words of each PBX that configsvc answers in.
func dialects() []configsvc.Dialect {
	return []configsvc.Dialect{
		{Name: "asterisk_realtime", Pattern: "/asterisk/realtime/*", Methods: []string{http.MethodGet, http.MethodPost}, ContentType: "text/plain", Answer: asteriskRealtime, Shadow: shadowAsteriskRealtime},
		{Name: "asterisk_call", Pattern: "/asterisk/call", Methods: []string{http.MethodPost}, ContentType: "text/plain", Answer: asteriskCall, Shadow: shadowAsteriskCall},
		{Name: "freeswitch", Pattern: "/freeswitch/xml", Methods: []string{http.MethodPost}, ContentType: "text/xml; charset=utf-8", Answer: freeswitchXML, Shadow: shadowFreeswitchXML},
		{Name: "mod_curl", Pattern: "/freeswitch/curl", Methods: []string{http.MethodGet}, ContentType: "text/plain; charset=utf-8", Answer: freeswitchCurl, Shadow: shadowFreeswitchCurl},
		{Name: "kamailio", Pattern: "/kamailio/route", Methods: []string{http.MethodGet}, ContentType: "text/plain", BySBC: true, Answer: kamailioRoute, Shadow: shadowKamailioRoute},
	}
}

// freeswitchXML answers mod_xml_curl.
func freeswitchXML(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result) {
	answer, sum := freeswitch.Answer(x, q.Node, time.Now(), q.Body, dst)
	return answer, configsvc.Result{Outcome: sum.Section + " " + sum.Outcome, Tenant: sum.Tenant, Urgent: sum.Urgent}
}

// freeswitchCurl answers mod_curl.
func freeswitchCurl(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result) {
	answer, sum := freeswitch.AnswerCurl(x, q.Node, time.Now(), q.Query, dst)
	return answer, configsvc.Result{Outcome: sum.Outcome, Tenant: sum.Tenant}
}

// asteriskRealtime answers res_config_curl. Several of Asterisk's threads wait
// for such an answer with a lock held that other tenants' calls need.
func asteriskRealtime(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result) {
	answer, sum := asterisk.AnswerRealtime(x, q.Node, time.Now(), strings.TrimPrefix(q.Path, "/asterisk/realtime/"), q.Body, dst)
	return answer, configsvc.Result{Outcome: sum.Outcome, Tenant: sum.Tenant, Urgent: true}
}

// asteriskCall answers the dialplan's CURL().
func asteriskCall(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result) {
	answer, sum := asterisk.AnswerCall(x, q.Node, q.Body, time.Now(), dst)
	return answer, configsvc.Result{Outcome: sum.Outcome, Tenant: sum.Tenant}
}

// kamailioRoute answers an SBC's http_client.
func kamailioRoute(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result) {
	answer, sum := kamailio.Answer(x, q.SBC, q.Query, dst)
	return answer, configsvc.Result{Outcome: sum.Outcome, Tenant: sum.Tenant, Status: sum.Status, Urgent: true} // a worker of the SBC's waits
}
