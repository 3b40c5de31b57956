package cdr

import (
	"cmp"
	"maps"
	"math"
	"math/bits"
	"slices"
	"time"
)

// rank orders sources by how much they know of a leg.
func rank(s Source) int {
	switch s {
	case SourceESL, SourceARI, SourceSBC:
		return 5
	case SourceHTTP:
		return 4
	case SourceFile, SourceAMI:
		return 3
	case SourceReconciled:
		return 2
	case SourceSynthesised:
		return 1
	}
	return 0
}

// compareSources is a total order; the greater source is the better one.
func compareSources(a, b Source) int {
	if a == b {
		return 0
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
}

// Merge joins two reports of one leg, field by field: a value wins over none,
// then the better source's wins, then, of one source, the finer or the greater
// one. Nothing else decides, so Merge is commutative, associative and
// idempotent, and reports may come in any order and any number of times. The
// times of a better source are the finer ones too: those of AMI's Cdr and of a
// list of channels have whole seconds.
//
// Attrs and Gap have no source of their own: attributes are united, and the
// greater value stays.
//
// Merge does not ask whether a and b are of one leg. It leaves its arguments
// alone, but the result may share memory with them.
func Merge(a, b Record) Record {
	var m merger
	m.load(&a, &b)
	return m.record(false, reporters(&a, &b))
}

// Update is Merge of what was known of a leg that goes on and a newer report
// of it: the newer one's values win, whatever their source.
func Update(older, newer Record) Record {
	if newer.Call == newer.Leg && older.Call != "" { // the leg's own name only says that no other is known
		newer.Call = ""
	}
	var m merger
	m.load(&older, &newer)
	return m.record(true, reporters(&older, &newer))
}

// Restate makes what is known of r the report of s: every field keeps the
// source that it has, and Source is s alone.
func Restate(r Record, s Source) Record {
	var m merger
	m.load(&r, &r)
	return m.record(false, []Source{s})
}

// reporters returns the sorted union of who reported a and b.
func reporters(a, b *Record) []Source {
	if len(a.Sources) == 0 && len(b.Sources) == 0 && a.Source == b.Source {
		return a.Reporters()
	}
	// A record from elsewhere may not name its Source among its Sources.
	all := slices.Concat(a.Sources, b.Sources, []Source{a.Source, b.Source})
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(s Source) bool { return s == "" })
}

// merger holds two reports and the source of every field of each.
type merger struct {
	a, b       *Record
	srcA, srcB [fieldCount]Source
	out        [fieldCount]Source
	set        Fields // fields of the result that have a value
	newer      bool   // b's values win
}

func (m *merger) load(a, b *Record) {
	m.a, m.b = a, b
	provenance(a, &m.srcA)
	provenance(b, &m.srcB)
}

func provenance(r *Record, src *[fieldCount]Source) {
	for i := range src {
		src[i] = r.Source
	}
	var claimed Fields
	for s, fields := range r.Prov {
		fields.each(func(i int) {
			if claimed&(1<<i) == 0 || compareSources(s, src[i]) > 0 {
				src[i] = s
			}
			claimed |= 1 << i
		})
	}
}

// wins tells whether b's value of a field is taken, where order compares a's
// value with b's.
func (m *merger) wins(f Fields, hasA, hasB bool, order int) bool {
	if !hasA && !hasB {
		return false
	}
	m.set |= f
	i := bits.TrailingZeros32(uint32(f))
	var b bool
	switch {
	case !hasA || !hasB:
		b = hasB
	case m.newer:
		b = true
	default:
		b = cmp.Or(compareSources(m.srcA[i], m.srcB[i]), order) < 0
	}
	m.out[i] = m.srcA[i]
	if b {
		m.out[i] = m.srcB[i]
	}
	return b
}

func pick[T cmp.Ordered](m *merger, f Fields, a, b T) T {
	var zero T
	if m.wins(f, a != zero, b != zero, cmp.Compare(a, b)) {
		return b
	}
	return a
}

func pickTime(m *merger, f Fields, a, b time.Time) time.Time {
	a, b = a.UTC().Truncate(time.Microsecond), b.UTC().Truncate(time.Microsecond)
	order := cmp.Or(cmp.Compare(fine(a), fine(b)), a.Compare(b))
	if m.wins(f, !a.IsZero(), !b.IsZero(), order) {
		return b
	}
	return a
}

// fine is 0 for a time in whole seconds.
func fine(t time.Time) int { return min(1, t.Nanosecond()) }

func pickInt(m *merger, f Fields, a, b *int64) *int64 {
	order := 0
	if a != nil && b != nil {
		order = cmp.Compare(*a, *b)
	}
	if m.wins(f, a != nil, b != nil, order) {
		return b
	}
	return a
}

func pickFloat(m *merger, f Fields, a, b *float64) *float64 {
	a, b = finite(a), finite(b)
	order := 0
	if a != nil && b != nil {
		order = cmp.Compare(*a, *b)
	}
	if m.wins(f, a != nil, b != nil, order) {
		return b
	}
	return a
}

// finite is nil for what is no measurement, and could not be encoded.
func finite(f *float64) *float64 {
	if f != nil && (math.IsNaN(*f) || math.IsInf(*f, 0)) {
		return nil
	}
	return f
}

// record works out the result, reported by sources.
func (m *merger) record(newer bool, sources []Source) Record {
	m.newer = newer
	a, b := m.a, m.b
	r := Record{
		Schema: max(a.Schema, b.Schema), ID: greaterID(a.ID, b.ID), Kind: max(a.Kind, b.Kind),
		Cell: max(a.Cell, b.Cell), Node: max(a.Node, b.Node), Leg: max(a.Leg, b.Leg),

		SBC:       pick(m, FieldSBC, a.SBC, b.SBC),
		Pool:      pick(m, FieldPool, a.Pool, b.Pool),
		Tenant:    pick(m, FieldTenant, a.Tenant, b.Tenant),
		Revision:  pick(m, FieldRevision, a.Revision, b.Revision),
		Call:      pick(m, FieldCall, a.Call, b.Call),
		SIPCallID: pick(m, FieldSIPCallID, a.SIPCallID, b.SIPCallID),
		Direction: pick(m, FieldDirection, a.Direction, b.Direction),
		Caller:    pick(m, FieldCaller, a.Caller, b.Caller),
		Callee:    pick(m, FieldCallee, a.Callee, b.Callee),

		Start:  pickTime(m, FieldStart, a.Start, b.Start),
		Ring:   pickTime(m, FieldRing, a.Ring, b.Ring),
		Answer: pickTime(m, FieldAnswer, a.Answer, b.Answer),
		End:    pickTime(m, FieldEnd, a.End, b.End),

		SIPCode:  pick(m, FieldSIPCode, a.SIPCode, b.SIPCode),
		Q850:     pick(m, FieldQ850, a.Q850, b.Q850),
		Cause:    pick(m, FieldCause, a.Cause, b.Cause),
		Codec:    pick(m, FieldCodec, a.Codec, b.Codec),
		HangupBy: pick(m, FieldHangupBy, a.HangupBy, b.HangupBy),

		RTPIn:       pickInt(m, FieldRTPIn, a.RTPIn, b.RTPIn),
		RTPOut:      pickInt(m, FieldRTPOut, a.RTPOut, b.RTPOut),
		RTPLost:     pickInt(m, FieldRTPLost, a.RTPLost, b.RTPLost),
		JitterMS:    pickFloat(m, FieldJitterMS, a.JitterMS, b.JitterMS),
		MOS:         pickFloat(m, FieldMOS, a.MOS, b.MOS),
		ClockOffset: pick(m, FieldClockOffset, a.ClockOffset, b.ClockOffset),

		Attrs: attrs(a.Attrs, b.Attrs, newer),
		Gap:   max(a.Gap, b.Gap),
	}
	m.finish(&r, sources)
	return r
}

// finish writes down who reported the record, in the one form that it has.
func (m *merger) finish(r *Record, sources []Source) {
	if len(sources) > 0 {
		r.Source = slices.MaxFunc(sources, compareSources)
	}
	if len(sources) > 1 {
		r.Sources = sources
	}
	m.set.each(func(i int) {
		if s := m.out[i]; s != r.Source {
			if r.Prov == nil {
				r.Prov = map[Source]Fields{}
			}
			r.Prov[s] |= 1 << i
		}
	})
}

func greaterID(a, b ID) ID {
	if slices.Compare(a[:], b[:]) < 0 {
		return b
	}
	return a
}

// attrs unites attributes. Of too many the first in the order of their keys
// stay: whatever is united first, those are among the first of each part.
func attrs(a, b map[string]string, newer bool) map[string]string {
	if len(b) == 0 && len(a) <= MaxAttrs || len(a) == 0 && len(b) <= MaxAttrs || maps.Equal(a, b) && len(a) <= MaxAttrs {
		if len(a) > 0 {
			return a
		}
		if len(b) > 0 {
			return b
		}
		return nil
	}
	out := make(map[string]string, len(a)+len(b))
	maps.Copy(out, a)
	for k, v := range b {
		if newer {
			out[k] = v
		} else {
			out[k] = max(out[k], v)
		}
	}
	if len(out) > MaxAttrs {
		for _, k := range slices.Sorted(maps.Keys(out))[MaxAttrs:] {
			delete(out, k)
		}
	}
	return out
}
