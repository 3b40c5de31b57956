package configsvc

import (
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-chi/chi/v5"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

func TestDescriptionIsValid(t *testing.T) {
	doc := describe(t)
	if err := doc.Validate(t.Context(), openapi3.IsOpenAPI31OrLater()); err != nil {
		t.Error(err)
	}
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("version %s", doc.OpenAPI)
	}
}

// TestDescriptionAndRouterAgree: what is routed is described, and what is
// described is routed.
func TestDescriptionAndRouterAgree(t *testing.T) {
	x := newAdmin(t)
	var routed, described []string
	if err := chi.Walk(x.router, func(method, path string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		routed = append(routed, method+" "+path)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for path, item := range x.doc.Paths.Map() {
		for method, op := range item.Operations() {
			described = append(described, method+" "+path)
			if op.OperationID == "" || op.Summary == "" {
				t.Errorf("%s %s has no operationId or summary", method, path)
			}
			for name := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '{' || r == '}' }) {
				if strings.Contains(path, "{"+name+"}") && item.Parameters.GetByInAndName("path", name) == nil {
					t.Errorf("%s: %s is not described", path, name)
				}
			}
		}
	}
	slices.Sort(routed)
	slices.Sort(described)
	for _, r := range routed {
		if !slices.Contains(described, r) {
			t.Errorf("%s is routed and not described", r)
		}
	}
	for _, d := range described {
		if !slices.Contains(routed, d) {
			t.Errorf("%s is described and not routed", d)
		}
	}
}

// TestDescriptionHasTheFields holds the schemas against the types.
func TestDescriptionHasTheFields(t *testing.T) {
	doc := describe(t)
	for name, typ := range map[string]reflect.Type{
		"Cell": reflect.TypeFor[bulkhead.Cell](), "Pool": reflect.TypeFor[bulkhead.Pool](), "Node": reflect.TypeFor[bulkhead.Node](),
		"SBC": reflect.TypeFor[bulkhead.SBC](), "Tenant": reflect.TypeFor[bulkhead.Tenant](), "User": reflect.TypeFor[bulkhead.User](),
		"Number": reflect.TypeFor[bulkhead.Number](), "Trunk": reflect.TypeFor[bulkhead.Trunk](), "Limits": reflect.TypeFor[bulkhead.Limits](),
		"Change": reflect.TypeFor[bulkhead.Change](), "Deletion": reflect.TypeFor[bulkhead.Deletion](), "Token": reflect.TypeFor[registry.Token](),
		"UserInput": reflect.TypeFor[userBody](), "TenantInput": reflect.TypeFor[tenantBody](), "ChangeInput": reflect.TypeFor[bulkBody](),
		"Class": reflect.TypeFor[bulkhead.Class](), "Group": reflect.TypeFor[bulkhead.Group](), "Schedule": reflect.TypeFor[bulkhead.Schedule](),
		"Hours": reflect.TypeFor[bulkhead.Hours](), "Exception": reflect.TypeFor[bulkhead.Exception](), "Forward": reflect.TypeFor[bulkhead.Forward](),
		"Announcement": reflect.TypeFor[bulkhead.Announcement](), "Handover": reflect.TypeFor[bulkhead.Handover](), "Dialling": reflect.TypeFor[bulkhead.Dialling](),
		"CallerIDPolicy": reflect.TypeFor[bulkhead.CallerIDPolicy](), "HeaderRule": reflect.TypeFor[bulkhead.HeaderRule](),
		"RouteQuestion": reflect.TypeFor[explainBody](), "RouteExplanation": reflect.TypeFor[Explanation](), "RouteStep": reflect.TypeFor[PlanStep](),
		"AuditEntry": reflect.TypeFor[registry.AuditEntry](), "Revision": reflect.TypeFor[revisionView](), "Difference": reflect.TypeFor[Difference](),
		"Applied": reflect.TypeFor[applied](), "Problem": reflect.TypeFor[problem](),
	} {
		s := doc.Components.Schemas[name]
		if s == nil {
			t.Errorf("there is no schema %s", name)
			continue
		}
		var described, have []string
		for k := range s.Value.Properties {
			described = append(described, k)
		}
		for _, f := range reflect.VisibleFields(typ) {
			if n, _, _ := strings.Cut(f.Tag.Get("json"), ","); n != "" && n != "-" {
				have = append(have, n)
			}
		}
		slices.Sort(described)
		slices.Sort(have)
		if !slices.Equal(described, have) {
			t.Errorf("schema %s has %v, the type has %v", name, described, have)
		}
	}
}

func TestDescriptionIsServed(t *testing.T) {
	x := newAdmin(t)
	g := x.want(http.StatusOK, x.send(http.MethodGet, "/v1/openapi.yaml", "", ""))
	if !strings.HasPrefix(g.body, "openapi: 3.1.0") {
		t.Errorf("%.40q", g.body)
	}
}
