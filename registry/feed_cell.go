package registry

import (
	"slices"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// cellState is what followers of a cell may see of a state: the cell, and
// what is in it. It is a valid state by itself.
func cellState(s bulkhead.State, cell bulkhead.CellID) bulkhead.State {
	out := cellFrame(s, cell)
	out.Tenants = map[bulkhead.TenantID]*bulkhead.Tenant{}
	for id, t := range s.Tenants {
		if t.Cell == cell {
			out.Tenants[id] = t
		}
	}
	return out
}

// cellFrame is cellState without tenants.
func cellFrame(s bulkhead.State, cell bulkhead.CellID) bulkhead.State {
	out := bulkhead.State{
		Revision: s.Revision,
		Cells:    map[bulkhead.CellID]*bulkhead.Cell{},
		Pools:    map[bulkhead.PoolID]*bulkhead.Pool{},
		Nodes:    map[bulkhead.NodeID]*bulkhead.Node{},
		SBCs:     map[bulkhead.SBCID]*bulkhead.SBC{},
	}
	if c := s.Cells[cell]; c != nil {
		out.Cells[cell] = c
	}
	for id, p := range s.Pools {
		if p.Cell == cell {
			out.Pools[id] = p
		}
	}
	for id, n := range s.Nodes {
		if out.Pools[n.Pool] != nil {
			out.Nodes[id] = n
		}
	}
	for id, b := range s.SBCs {
		if b.Cell == cell {
			out.SBCs[id] = b
		}
	}
	return out
}

// feedStep is one revision, with what is needed to cut it down to a cell.
type feedStep struct {
	revision      *bulkhead.Revision
	before, after bulkhead.State                        // without their tenants
	was           map[bulkhead.TenantID]bulkhead.CellID // of the tenants that the change names
}

// change is what the revision is to followers of a cell: a tenant that moves
// away is gone. The empty cell stands for all.
func (s *feedStep) change(cell bulkhead.CellID) *bulkhead.Change {
	full := &s.revision.Change
	if cell == "" {
		return full
	}
	var c bulkhead.Change
	if touchesFrame(full) {
		c = cellFrame(s.before, cell).Diff(cellFrame(s.after, cell))
	}
	tenants := merged[bulkhead.TenantID, bulkhead.Tenant]{}
	tenants.add(full.Tenants, func(v *bulkhead.Tenant) bulkhead.TenantID { return v.ID }, full.Delete.Tenants)
	for id, t := range tenants {
		switch {
		case t != nil && t.Cell == cell:
		case s.was[id] == cell:
			tenants[id] = nil
		default:
			delete(tenants, id)
		}
	}
	c.Tenants, c.Delete.Tenants = tenants.lists()
	return &c
}

func touchesFrame(c *bulkhead.Change) bool {
	d := &c.Delete
	return len(c.Cells)+len(c.Pools)+len(c.Nodes)+len(c.SBCs)+len(d.Cells)+len(d.Pools)+len(d.Nodes)+len(d.SBCs) > 0
}

const (
	// cellLines and cellBytes bound the changes that a feed keeps for each
	// cell that somebody follows; who is further behind gets a snapshot.
	cellLines = 1024
	cellBytes = 16 << 20
	cellPage  = 64 // lines that are sent at once
	// cachedSnapshot is the largest snapshot that is kept encoded, and
	// snapshotAge how many changes old it may be.
	cachedSnapshot = 32 << 20
	snapshotAge    = 64
	// cellIdle is how long a cell is kept that nobody follows.
	cellIdle = 5 * time.Minute
)

// feedCell is what a feed keeps for all followers of one cell.
type feedCell struct {
	id   bulkhead.CellID
	keep int // lines at most

	// Guarded by Feed.mu.
	start mark     // what the first line leads on from
	lines [][]byte // one for each revision after start
	marks []mark   // of each line
	size  int
	users int
	idle  time.Time // since when there are none

	encoding sync.Mutex // whoever encodes a snapshot
	cached   *encodedSnapshot
}

// encodedSnapshot is a snapshot as it is sent.
type encodedSnapshot struct {
	mark
	lines [][]byte
}

func (c *feedCell) add(text []byte, m mark) {
	c.lines, c.marks = append(c.lines, text), append(c.marks, m)
	c.size += len(text)
	drop := 0
	for len(c.lines)-drop > c.keep || c.size > cellBytes && len(c.lines) > drop {
		c.size -= len(c.lines[drop])
		drop++
	}
	if drop > 0 {
		c.start = c.marks[drop-1]
		clear(c.lines[:drop])
		c.lines, c.marks = c.lines[drop:], c.marks[drop:]
	}
}

// has reports whether the lines lead on from m.
func (c *feedCell) has(m mark) bool {
	if m == c.start {
		return true
	}
	i := int(m.number) - int(c.start.number) - 1
	return m.number > c.start.number && i < len(c.marks) && c.marks[i] == m
}

// after returns lines after m, which the cell must have, and how far they lead.
func (c *feedCell) after(m mark) ([][]byte, mark) {
	from := int(m.number - c.start.number)
	to := min(from+cellPage, len(c.lines))
	if from == to {
		return nil, m
	}
	return slices.Clone(c.lines[from:to]), c.marks[to-1]
}
