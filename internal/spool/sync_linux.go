package spool

import (
	"errors"
	"os"
	"syscall"
)

// fdatasync makes the bytes and the length of f durable, without the times
// that fsync would also write.
func fdatasync(f *os.File) error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
