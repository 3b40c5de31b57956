package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-voip/bulkhead"
)

// Limits of a configuration file.
const (
	MaxFileSize   = 64 << 20 // bytes
	MaxScalarSize = 64 << 10 // bytes of one text
	// maxParts bounds the memory that reading takes, about 200 bytes a part:
	// a key, a text, a list or an entry of one.
	maxParts = 5_000_000
	// maxFileErrors is how many errors of one file are named.
	maxFileErrors = 100
)

// File is configuration that an operator wrote: lists of objects under the
// keys cells, pools, nodes, sbcs and tenants, with the names that the JSON of
// the domain types has. A user has either ha1 or password; a password is
// turned into the HA1 of the tenant's first domain while it is read, and
// forgotten. Numbers, extensions and passwords may be written without quotes
// and are taken as written.
type File struct {
	name   string
	change bulkhead.Change
	listed map[string]bool       // top-level keys that are there
	at     map[string]*yaml.Node // by "tenants[acme]": where the object was written
}

// ReadFile reads the file at path as ParseFile does.
func ReadFile(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w: %w", bulkhead.Invalid, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration %s: %w: %w", path, bulkhead.Unavailable, err)
	}
	return ParseFile(path, data)
}

// ParseFile reads configuration from data; name is what errors call it.
// Everything that is wrong is returned at once, as bulkhead.FieldErrors of
// kind bulkhead.Invalid whose Pos is name:line: unknown and repeated keys,
// wrong types, two objects with one id, anchors and aliases, several
// documents, too much of anything. The objects' values are not yet checked:
// see Plan. No error quotes a password.
func ParseFile(name string, data []byte) (*File, error) {
	l := &loader{name: name}
	root := l.parse(data)
	if root == nil || !l.plain(root) {
		return nil, l.err()
	}
	f := &File{name: name, listed: map[string]bool{}, at: map[string]*yaml.Node{}}
	l.file(root, f)
	if err := l.err(); err != nil {
		return nil, err
	}
	return f, nil
}

// Plan returns the change that makes head hold what the file says, with
// objects left out that are already so. Objects that the file does not name
// stay, unless prune is set: then those are deleted whose kind the file has a
// list of, be it an empty one.
//
// The resulting state is validated. Errors are bulkhead.FieldErrors that name
// file and line, and both places when two objects of the file claim the same
// domain, number, network or address.
func (f *File) Plan(head bulkhead.State, prune bool) (bulkhead.Change, error) {
	want := f.change
	if prune {
		want.Delete = bulkhead.Deletion{
			Cells:   missing(f, "cells", head.Cells),
			Pools:   missing(f, "pools", head.Pools),
			Nodes:   missing(f, "nodes", head.Nodes),
			SBCs:    missing(f, "sbcs", head.SBCs),
			Tenants: missing(f, "tenants", head.Tenants),
		}
	}
	to := head.Apply(&want)
	if err := to.Validate(); err != nil {
		return bulkhead.Change{}, f.locate(to, err)
	}
	return head.Diff(to), nil
}

// missing lists the objects of a kind that the file has a list of, but not them.
func missing[K ~string, V any](f *File, kind string, have map[K]*V) []K {
	if !f.listed[kind] {
		return nil
	}
	var out []K
	for id := range have {
		if f.at[objectKey(kind, string(id))] == nil {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

func objectKey(kind, id string) string { return kind + "[" + id + "]" }

// ApplyOptions say how a file is applied to a store.
type ApplyOptions struct {
	Author  string
	Message string
	Prune   bool // see File.Plan
	DryRun  bool // find out what would be done, and do nothing
}

// applyTries is how often Apply plans anew because somebody else committed.
const applyTries = 20

// Apply commits what File.Plan says. It returns the revision that holds it;
// when there was nothing to do, that is the head's number with an empty
// Change and no Parent. With DryRun it returns the revision as it would be.
// When somebody else commits at the same time it plans anew, and returns
// bulkhead.Conflict only if that goes on and on, or when two owners claim one
// thing (see bulkhead.FieldErrors).
func (f *File) Apply(ctx context.Context, store Store, o ApplyOptions) (bulkhead.Revision, error) {
	for try := 1; ; try++ {
		head, err := store.Head(ctx)
		if err != nil {
			return bulkhead.Revision{}, err
		}
		change, err := f.Plan(head, o.Prune)
		if err != nil {
			return bulkhead.Revision{}, err
		}
		if change.IsZero() {
			return bulkhead.Revision{Number: head.Revision}, nil
		}
		r := bulkhead.Revision{Author: o.Author, Message: o.Message, Change: change}
		if o.DryRun {
			r.Number, r.Parent = head.Revision+1, head.Revision
			return r, nil
		}
		r, err = store.Commit(ctx, head.Revision, r)
		if !errors.Is(err, bulkhead.Conflict) || try == applyTries {
			return r, err
		}
	}
}
