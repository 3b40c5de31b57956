package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-voip/bulkhead"
)

// Export writes the whole state as a file that ParseFile reads: every kind
// has its list, objects come in the order of their ids, and the same state
// gives the same bytes. It holds the users' digest secrets.
func Export(w io.Writer, s bulkhead.State) error {
	c := s.Change()
	root := &yaml.Node{Kind: yaml.MappingNode, HeadComment: fmt.Sprintf("Revision %d. The ha1 and trunk password values are secrets: whoever has one can call at its owner's cost.", s.Revision)}
	for _, kind := range []struct {
		name string
		list any
	}{{"cells", c.Cells}, {"pools", c.Pools}, {"nodes", c.Nodes}, {"sbcs", c.SBCs}, {"tenants", c.Tenants}} {
		n, err := encode(reflect.ValueOf(kind.list))
		if err != nil {
			return fmt.Errorf("export %s: %w", kind.name, err)
		}
		root.Content = append(root.Content, textNode(kind.name), n)
	}
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(root); err != nil {
		return fmt.Errorf("export revision %d: %w", s.Revision, err)
	}
	if err := e.Close(); err != nil {
		return fmt.Errorf("export revision %d: %w", s.Revision, err)
	}
	return nil
}

// ExportFile exports to a file that its owner alone can read. The file is
// replaced whole or not at all, and is on disk when ExportFile returns.
func ExportFile(path string, s bulkhead.State) error {
	var b bytes.Buffer
	if err := Export(&b, s); err != nil {
		return err
	}
	if err := renameio.WriteFile(path, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("export revision %d: %w", s.Revision, err)
	}
	// The new name is durable only with its folder.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("export revision %d: %w", s.Revision, err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("export revision %d: sync the folder: %w", s.Revision, err)
	}
	return nil
}

func textNode(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
}

// encode is the inverse of loader.value.
func encode(v reflect.Value) (*yaml.Node, error) {
	if p, ok := v.Interface().(netip.Prefix); ok {
		return textNode(p.String()), nil
	}
	switch v.Kind() {
	case reflect.String:
		return textNode(v.String()), nil
	case reflect.Bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v.Bool())}, nil
	case reflect.Int:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatInt(v.Int(), 10)}, nil
	case reflect.Uint16:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatUint(v.Uint(), 10)}, nil
	case reflect.Slice:
		list := &yaml.Node{Kind: yaml.SequenceNode}
		if v.Len() == 0 {
			list.Style = yaml.FlowStyle
		}
		for i := range v.Len() {
			n, err := encode(v.Index(i))
			if err != nil {
				return nil, err
			}
			list.Content = append(list.Content, n)
		}
		return list, nil
	case reflect.Struct:
		return encodeFields(v)
	case reflect.Pointer:
		return encode(v.Elem())
	default:
		return nil, fmt.Errorf("a file cannot hold a %s", v.Type())
	}
}

func encodeFields(v reflect.Value) (*yaml.Node, error) {
	group := &yaml.Node{Kind: yaml.MappingNode}
	for i := range v.NumField() {
		name, option, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		f := v.Field(i)
		if option != "" && (f.IsZero() || f.Kind() == reflect.Slice && f.Len() == 0) {
			continue
		}
		n, err := encode(f)
		if err != nil {
			return nil, err
		}
		group.Content = append(group.Content, textNode(name), n)
	}
	return group, nil
}
