package kamailio

import (
	"fmt"

	"github.com/bulkhead-voip/bulkhead"
)

// MaxRows is how many rows a table may have. 300,000 are tested, which is
// 100,000 tenants on one SBC; a cell of 500 tenants has some 5,000.
const MaxRows = 400_000

const (
	// baseSharedMB is for transactions, contacts, events and Kamailio itself.
	baseSharedMB = 96
	// rowBytes is what a row takes of shared memory, with its part of the
	// allocator's and the table's overhead.
	rowBytes = 300
	// rowCopies is how often a row is there at most: two tables, and a third
	// while one is loaded.
	rowCopies = 3
	// basePrivateMB is for each process's own, without the rows that the one
	// which loads a table has in its hands: rowPrivate bytes each.
	basePrivateMB = 16
	rowPrivate    = 700
)

// Memory returns the memory that a Kamailio with tables of so many rows needs.
func Memory(rows int) Options {
	mb := func(n int) int { return (n + 1<<20 - 1) >> 20 }
	return Options{SharedMB: baseSharedMB + mb(rows*rowBytes*rowCopies), PrivateMB: basePrivateMB + mb(rows*rowPrivate)}
}

// CheckRows refuses what no SBC was tested with, an error of kind bulkhead.Invalid.
func CheckRows(n int) error {
	if n > MaxRows {
		return fmt.Errorf("the table has %d rows, an SBC takes %d at most: put some of the cell's tenants into another cell: %w", n, MaxRows, bulkhead.Invalid)
	}
	return nil
}
