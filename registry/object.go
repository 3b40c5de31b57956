package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/bulkhead-voip/bulkhead"
)

// addObject adds a stored object to what c puts.
func addObject(c *bulkhead.Change, kind, id string, text []byte) (err error) {
	var got string
	switch kind {
	case "cell":
		got, err = appendObject(&c.Cells, text, cellID)
	case "pool":
		got, err = appendObject(&c.Pools, text, poolID)
	case "node":
		got, err = appendObject(&c.Nodes, text, nodeID)
	case "sbc":
		got, err = appendObject(&c.SBCs, text, sbcID)
	case "tenant":
		got, err = appendObject(&c.Tenants, text, tenantID)
	default:
		return errors.New("the kind is unknown: a newer bulkhead wrote it")
	}
	if err == nil && got != id {
		return fmt.Errorf("the stored object says that it is %q", got)
	}
	return err
}

func appendObject[V any](list *[]V, text []byte, id func(*V) string) (string, error) {
	var v V
	if err := decode(text, &v); err != nil {
		return "", err
	}
	*list = append(*list, v)
	return id(&v), nil
}

func cellID(v *bulkhead.Cell) string     { return string(v.ID) }
func poolID(v *bulkhead.Pool) string     { return string(v.ID) }
func nodeID(v *bulkhead.Node) string     { return string(v.ID) }
func sbcID(v *bulkhead.SBC) string       { return string(v.ID) }
func tenantID(v *bulkhead.Tenant) string { return string(v.ID) }

// decode reads one JSON value and refuses what it does not know: leaving a
// field out that a newer version wrote would lose it with the next commit.
func decode(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decode the stored JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("decode the stored JSON: something follows the value")
	}
	return nil
}
