package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"
)

// TestNoSpace runs childNoSpace, which mounts a small file system of its own.
func TestNoSpace(t *testing.T) {
	cmd := child(t, "nospace", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.Output()
	if errors.Is(err, syscall.EPERM) || string(out) == "no mount\n" {
		t.Skip("needs user namespaces, to fill a file system of its own")
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out)
}

// childNoSpace fills the file system, reads everything back, and expects to
// be able to append again.
func childNoSpace(dir string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		fmt.Println("no mount")
		return nil
	}
	o := killOptions()
	o.SegmentBytes = 100 << 10
	s, err := Open(dir, o)
	if err != nil {
		return err
	}
	defer s.Close()
	r, err := OpenReader(dir, "one", ReaderOptions{})
	if err != nil {
		return err
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stored := 0
	for {
		err = s.Append(ctx, fmt.Appendf(nil, "%0700d", stored))
		if err != nil {
			break
		}
		stored++
	}
	if !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) || stored < 600 {
		return fmt.Errorf("after %d records: %w, want ErrFull and ENOSPC", stored, err)
	}
	for n := 0; n < stored; {
		b, err := r.Read(ctx, 100)
		if err != nil {
			return fmt.Errorf("read behind record %d of %d: %w", n, stored, err)
		}
		for _, p := range b.Payloads {
			var got int
			if _, err := fmt.Sscanf(string(p), "%d", &got); err != nil || got != n {
				return fmt.Errorf("record %.20q, want number %d", p, n)
			}
			n++
		}
		if err := b.Ack(); err != nil { // on the full disk
			return err
		}
	}
	for {
		if err = s.Append(ctx, []byte("again")); err == nil {
			break
		}
		if !errors.Is(err, ErrFull) {
			return err
		}
	}
	b, err := r.Read(ctx, 10)
	if err != nil || string(b.Payloads[0]) != "again" {
		return fmt.Errorf("after room: %q, error %w", b.Payloads, err)
	}
	fmt.Printf("full after %d records, all read, then appended again\n", stored)
	return nil
}
