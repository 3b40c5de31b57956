package route

import "sync"

// Live is the current Snapshot, swapped whole. The zero Live holds none.
type Live struct {
	mu      sync.RWMutex
	current *Snapshot
	changed chan struct{}
}

// Load returns the current snapshot, or nil before the first Store.
func (l *Live) Load() *Snapshot {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.current
}

// Store makes s the current snapshot for every Load that follows.
func (l *Live) Store(s *Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = s
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Next returns the current snapshot and a channel that is closed by the next Store.
func (l *Live) Next() (*Snapshot, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.current, l.changed
}
