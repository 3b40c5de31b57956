package spool

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
)

const (
	dirMode       = 0o750
	fileMode      = 0o640 // call records are personal data
	segmentExt    = ".seg"
	quarantineExt = ".quarantine"
	ackExt        = ".ack"
	lockExt       = ".lock"
	ackMagic      = "bulkhead-spool-ack-1"
)

// segmentFile is a segment in a listing.
type segmentFile struct {
	num         uint64
	quarantined bool
}

func segmentPath(dir string, num uint64, quarantined bool) string {
	name := fmt.Sprintf("%020d%s", num, segmentExt)
	if quarantined {
		name += quarantineExt
	}
	return filepath.Join(dir, name)
}

func (s segmentFile) path(dir string) string { return segmentPath(dir, s.num, s.quarantined) }

func (s segmentFile) fileSize(dir string) (int64, error) {
	st, err := os.Stat(s.path(dir))
	if err != nil {
		return 0, fmt.Errorf("look at segment: %w", err)
	}
	return st.Size(), nil
}

// listSegments returns the segments in ascending order.
func listSegments(dir string) ([]segmentFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list spool: %w", err)
	}
	var segs []segmentFile
	for _, e := range entries {
		name, quarantined := strings.CutSuffix(e.Name(), quarantineExt)
		digits, ok := strings.CutSuffix(name, segmentExt)
		if !ok || len(digits) != 20 {
			continue
		}
		num, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || num == 0 {
			continue
		}
		segs = append(segs, segmentFile{num: num, quarantined: quarantined})
	}
	slices.SortFunc(segs, func(a, b segmentFile) int { return cmp.Compare(a.num, b.num) })
	// A rename while the folder is read may show both names.
	segs = slices.CompactFunc(segs, func(a, b segmentFile) bool { return a.num == b.num })
	return segs, nil
}

// quarantine sets a segment apart. That somebody else did it first, or that
// it was freed, is no error.
func quarantine(dir string, num uint64) error {
	err := os.Rename(segmentPath(dir, num, false), segmentPath(dir, num, true))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set damaged segment apart: %w", err)
	}
	return syncDir(dir)
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}

// takeLock locks path for this process until the file is closed or the
// process ends in whatever way. The file stays: to delete it would let two
// processes hold locks on two files of the same name.
func takeLock(path, who string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0) // only for the message
		f.Close()
		return nil, fmt.Errorf("%w: %s is held by another %s (process %s); stop that one, or give this one a folder or name of its own",
			ErrLocked, path, who, cmp.Or(strings.TrimSpace(string(pid[:n])), "unknown"))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The number is only for the message above, so a failure does not matter.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return f, nil
}

// ack is how far a reader got.
type ack struct {
	name string
	pos  Position
	bad  bool // the file could not be understood
}

func ackPath(dir, name string) string { return filepath.Join(dir, name+ackExt) }

// encodeAck has the same length for every position.
func encodeAck(p Position) []byte {
	b := fmt.Appendf(nil, "%s %020d %020d", ackMagic, p.Segment, p.Offset)
	return fmt.Appendf(b, " %08x\n", crc32.Checksum(b, castagnoli))
}

// decodeAck accepts exactly what encodeAck makes.
func decodeAck(b []byte) (Position, error) {
	var p Position
	var sum uint32
	_, err := fmt.Sscanf(string(b), ackMagic+" %d %d %x\n", &p.Segment, &p.Offset, &sum)
	if err != nil || p.Offset < 0 || !bytes.Equal(b, encodeAck(p)) {
		return Position{}, fmt.Errorf("not an ack file: %.80q", b)
	}
	return p, nil
}

// writeAck replaces the ack file durably: after a crash there is the old one
// or the new one.
func writeAck(dir, name string, p Position) error {
	err := renameio.WriteFile(ackPath(dir, name), encodeAck(p), fileMode, renameio.WithTempDir(dir))
	if err == nil {
		return syncDir(dir)
	}
	// A full disk must not keep a reader from freeing it.
	if noSpace(err) && overwriteAck(dir, name, p) == nil {
		return nil
	}
	return fmt.Errorf("store position of reader %s: %w", name, err)
}

// overwriteAck needs no room. The file is within one sector; if a power cut
// should tear it nevertheless, its sum shows that and the reader begins again.
func overwriteAck(dir, name string, p Position) error {
	f, err := os.OpenFile(ackPath(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(encodeAck(p), 0); err != nil {
		return err
	}
	return f.Sync()
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// listAcks returns the positions of all readers that ever registered. A file
// that cannot be understood counts as a reader that has read nothing.
func listAcks(dir string) ([]ack, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list spool: %w", err)
	}
	var acks []ack
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ackExt)
		if !ok || !validName(name) {
			continue
		}
		b, err := os.ReadFile(ackPath(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // retired just now
		}
		if err != nil {
			return nil, fmt.Errorf("read position of reader %s: %w", name, err)
		}
		p, err := decodeAck(b)
		acks = append(acks, ack{name: name, pos: p, bad: err != nil})
	}
	return acks, nil
}

// validName accepts names that are safe as file names everywhere.
func validName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") == "" && s[0] != '-'
}
