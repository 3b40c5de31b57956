package siptest

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"
)

// allow is the value of the Allow header.
const allow = "INVITE, ACK, CANCEL, BYE, OPTIONS, INFO, UPDATE"

// StackConfig is the configuration of a Stack.
type StackConfig struct {
	// Listen is one numeric ip:port; port 0 lets the system choose. Via and
	// Contact carry it and everything is sent from it. Empty: 127.0.0.1:0.
	Listen string
	// T1 is the round trip estimate of RFC 3261 section 17.1.1.1, on which all
	// timers hang. 0: 500 ms.
	T1 time.Duration
	// UserAgent is the User-Agent header of INVITEs and the Server header of
	// their answers. Empty: Bulkhead-siptest.
	UserAgent string
	// Logger; nil discards.
	Logger *slog.Logger
	// OnInvite gets every INVITE outside a dialog, in a goroutine of its own. It
	// must see to a final response, also later from another goroutine. Nil
	// refuses with 480.
	OnInvite func(*Incoming)
	// OnRequest gets every other request outside a dialog, in a goroutine of its
	// own, and returns the response, made with sip.NewResponseFromRequest. Nil,
	// or a nil response: 200 to OPTIONS, 405 to the rest.
	OnRequest func(req *sip.Request, src netip.AddrPort) *sip.Response
}

// Stack is a SIP user agent core on one UDP socket: dialogs of both roles.
type Stack struct {
	cfg StackConfig
	e   *endpoint
	wg  sync.WaitGroup // the reader

	mu      sync.Mutex
	dialogs map[string]*Dialog
}

// NewStack binds the socket and starts to serve. Close it.
func NewStack(cfg StackConfig) (*Stack, error) {
	if cfg.UserAgent == "" {
		cfg.UserAgent = "Bulkhead-siptest"
	}
	e, err := listen(cfg.Listen, cfg.T1, cfg.Logger)
	if err != nil {
		return nil, err
	}
	s := &Stack{cfg: cfg, e: e, dialogs: map[string]*Dialog{}}
	e.onRequest, e.onAck = s.request, s.ack
	s.wg.Go(func() {
		if err := e.serve(); err != nil {
			e.log.Error("SIP socket", "err", err)
		}
	})
	return s, nil
}

// Addr is the address that the stack listens on and sends from.
func (s *Stack) Addr() netip.AddrPort { return s.e.addr }

// Close ends every dialog without a BYE and every transaction, and waits at
// most 5 s for the callbacks that still run.
func (s *Stack) Close() error {
	err := s.e.close()
	s.wg.Wait()
	s.mu.Lock()
	open := s.dialogs
	s.dialogs = map[string]*Dialog{}
	s.mu.Unlock()
	for _, d := range open {
		d.end(nil)
	}
	return err
}

// Dialogs returns the number of dialogs that are open.
func (s *Stack) Dialogs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.dialogs)
}

// Do sends a request other than INVITE and ACK to dst and returns its final
// response, whatever its status. It adds the Via, and each of From, To,
// Call-ID, CSeq and Max-Forwards that is missing. Without an answer it fails
// after 64*T1 with kind bulkhead.Unavailable.
func (s *Stack) Do(ctx context.Context, req *sip.Request, dst netip.AddrPort) (*sip.Response, error) {
	if req.Method == sip.INVITE || req.Method == sip.ACK {
		return nil, fmt.Errorf("%s has its own method of Stack", req.Method)
	}
	s.complete(req)
	return s.e.do(ctx, req, dst)
}

// complete adds what RFC 3261 section 8.1.1 asks of every request.
func (s *Stack) complete(req *sip.Request) {
	if req.From() == nil {
		from := &sip.FromHeader{Address: addrURI("", s.e.addr)}
		from.Params.Add("tag", newTag())
		req.PrependHeader(from)
	}
	if req.To() == nil {
		req.PrependHeader(&sip.ToHeader{Address: *req.Recipient.Clone()})
	}
	if req.CallID() == nil {
		id := sip.CallIDHeader(newTag() + newTag())
		req.PrependHeader(&id)
	}
	if req.CSeq() == nil {
		req.PrependHeader(&sip.CSeqHeader{SeqNo: 1, MethodName: req.Method})
	}
	if req.MaxForwards() == nil {
		mf := sip.MaxForwardsHeader(70)
		req.PrependHeader(&mf)
	}
	req.PrependHeader(newVia(s.e.addr))
	req.SetBody(req.Body()) // Content-Length
}

// contact is the Contact of this stack with the given user part.
func (s *Stack) contact(user string) *sip.ContactHeader {
	return &sip.ContactHeader{Address: addrURI(user, s.e.addr)}
}

// request gets everything but ACK and CANCEL.
func (s *Stack) request(tx *serverTx) {
	req := tx.req
	if tag := tagOf(req.To().Params); tag != "" {
		d := s.dialog(req.CallID().Value(), tag, tagOf(req.From().Params))
		if d == nil {
			tx.reply(sip.StatusCallTransactionDoesNotExists, "Call/Transaction Does Not Exist")
			return
		}
		d.request(tx)
		return
	}
	if req.Method == sip.INVITE {
		if s.cfg.OnInvite == nil {
			tx.reply(sip.StatusTemporarilyUnavailable, "Temporarily Unavailable")
			return
		}
		if !tx.onCancel(func() { terminated(tx) }) {
			terminated(tx)
			return
		}
		s.cfg.OnInvite(&Incoming{s: s, tx: tx})
		return
	}
	if s.cfg.OnRequest != nil {
		if res := s.cfg.OnRequest(req, tx.src); res != nil {
			if err := tx.respond(res); err != nil {
				s.e.log.Debug("respond", "method", req.Method, "err", err)
			}
			return
		}
	}
	if req.Method == sip.OPTIONS {
		tx.reply(sip.StatusOK, "OK", sip.NewHeader("Allow", allow), sip.NewHeader("Accept", "application/sdp"))
		return
	}
	tx.reply(sip.StatusMethodNotAllowed, "Method Not Allowed", sip.NewHeader("Allow", allow))
}

func (s *Stack) ack(req *sip.Request, _ netip.AddrPort) {
	if d := s.dialog(req.CallID().Value(), tagOf(req.To().Params), tagOf(req.From().Params)); d != nil {
		d.confirm()
	}
}

func (s *Stack) dialog(callID, localTag, remoteTag string) *Dialog {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dialogs[dialogKey(callID, localTag, remoteTag)]
}

func dialogKey(callID, localTag, remoteTag string) string {
	return callID + "|" + localTag + "|" + remoteTag
}

func (s *Stack) addDialog(d *Dialog) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialogs[d.key] = d
}

func (s *Stack) dropDialog(d *Dialog) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dialogs[d.key] == d {
		delete(s.dialogs, d.key)
	}
}
