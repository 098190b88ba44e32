package manifest

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	sigsyaml "sigs.k8s.io/yaml"
)

func known(apiVersion, kind string) runtime.Object {
	if apiVersion != "v1" {
		return nil
	}
	switch kind {
	case "Service":
		return &corev1.Service{}
	case "Pod":
		return &corev1.Pod{}
	case "Namespace":
		return &corev1.Namespace{}
	}
	return nil
}

func svc(name string) string {
	return "apiVersion: v1\nkind: Service\nmetadata:\n  name: " + name + "\n"
}

// TestSplit checks which documents are found and at which lines.
func TestSplit(t *testing.T) {
	tests := []struct {
		name, in string
		want     []string // "line Kind ns/name"
	}{
		{"nothing", "", nil},
		{"only comments and markers", "# a\n---\n\n# b\n---\n---\n", nil},
		{"null", "---\n~\n---\nnull\n", nil},
		{"leading comment", "# licence\n\n" + svc("a"), []string{"3 Service a"}},
		{"two", svc("a") + "---\n" + svc("b"), []string{"1 Service a", "6 Service b"}},
		{"text after the marker", "--- # first\n" + svc("a") + "---   # second\n# more\n" + svc("b"), []string{"2 Service a", "8 Service b"}},
		{"value on the marker's line", "--- {apiVersion: v1, kind: Service, metadata: {name: a}}\n--- {apiVersion: v1, kind: Pod, metadata: {name: b}}", []string{"1 Service a", "2 Pod b"}},
		{"not a marker", svc("a") + "  labels:\n    x: |\n      ---\n      more\n", []string{"1 Service a"}},
		{"CRLF", strings.ReplaceAll(svc("a")+"---\n"+svc("b"), "\n", "\r\n"), []string{"1 Service a", "6 Service b"}},
		{"BOM", "\xef\xbb\xbf" + svc("a") + "---\n\xef\xbb\xbf" + svc("b"), []string{"1 Service a", "6 Service b"}},
		{"only BOM", "\xef\xbb\xbf\xef\xbb\xbf", nil},
		{"directive and end marker", "%YAML 1.1\n---\n" + svc("a") + "...\n---\n" + svc("b"), []string{"3 Service a", "9 Service b"}},
		{"unknown kind", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: x}\nspec: [1]\n", []string{"1 Deployment x/d"}},
		{"List", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a, namespace: ns}\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: b}\n", []string{"4 Service ns/a", "7 Pod b"}},
		{"empty Lists", "apiVersion: v1\nkind: List\n---\napiVersion: v1\nkind: List\nitems:\n", nil},
		{"typed list", "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata:\n    name: a\n", []string{"4 Service a"}},
		{"JSON", "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Service\",\n\t\"metadata\": {\"name\": \"a\"}\n}\n", []string{"1 Service a"}},
		{"JSON stream", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"}}` + "\n\n" + `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"}}{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}`, []string{"1 Service a", "3 Pod b", "3 Pod c"}},
		{"JSON after marker", "---\n" + `{"apiVersion":"v1","kind":"Service","metadata":{"name":"a","annotations":{"x":"\ud83d\ude00 \\ud83d \/"}}}`, []string{"2 Service a"}},
		{"anchors and merge", "x: &m {name: a}\napiVersion: v1\nkind: Service\nmetadata:\n  <<: *m\n  namespace: ns\n", []string{"1 Service ns/a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			docs, errs := Parse("f.yaml", []byte(tt.in), known)
			var got []string
			for _, d := range docs {
				got = append(got, fmt.Sprintf("%d %s", d.Line, d.ID))
			}
			if len(errs) > 0 || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %q, errors %v, want %q", got, errs, tt.want)
			}
		})
	}
}

// TestErrors checks that each error names the line of the bad field and that the good document
// around it is there.
func TestErrors(t *testing.T) {
	tests := []struct {
		name, in string
		want     []string
	}{
		{"wrong number", svc("web") + "spec:\n  ports:\n  - port: 80\n  - name: x\n    port: eighty\n",
			[]string{`f.yaml:14: Service web: spec.ports[1].port: is the text "eighty", expected a whole number of 32 bits`}},
		{"two at once", svc("web") + "  labels:\n    a: 1\nspec:\n  type: [x]\n",
			[]string{`f.yaml:11: Service web: metadata.labels.a: is the number 1, expected a text: put it in quotes, "1"`,
				`f.yaml:13: Service web: spec.type: is a list, expected a text`}},
		{"yes is a boolean", svc("web") + "  labels:\n    example.com/a: yes\n",
			[]string{`f.yaml:11: Service web: metadata.labels[example.com/a]: is the boolean yes (a plain yes, no, on, off, y or n is one), expected a text: put it in quotes, "yes"`}},
		{"quantity", "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: ns}\nspec:\n  containers:\n  - name: c\n    resources:\n      limits:\n        cpu: lots\n",
			[]string{`f.yaml:14: Pod ns/p: spec.containers[0].resources.limits.cpu: is the text "lots", expected a quantity such as 100m or 2Gi`}},
		{"time", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  deletionTimestamp: now\n",
			[]string{`f.yaml:10: Pod p: metadata.deletionTimestamp: is the text "now", expected a time such as 2006-01-02T15:04:05Z`}},
		{"float in an integer", svc("web") + "spec:\n  healthCheckNodePort: 1.5\n",
			[]string{`f.yaml:11: Service web: spec.healthCheckNodePort: is the number 1.5, expected a whole number of 32 bits`}},
		{"infinite", svc("web") + "spec:\n  healthCheckNodePort: .inf\n",
			[]string{`f.yaml:11: Service web: spec.healthCheckNodePort: is .inf, expected a finite number`}},
		{"mapping for a list", svc("web") + "spec:\n  ports: {port: 1}\n",
			[]string{`f.yaml:11: Service web: spec.ports: is a mapping, expected a list`}},
		{"indentation", svc("web") + "spec:\n  ports:\n  - port: 80\n   protocol: TCP\n  - port: 81\n",
			[]string{`f.yaml:13: Service web: is not YAML: this does not continue the mapping above it, expected a key at the same indentation`}},
		{"open quote", svc("web") + "spec:\n  type: \"ClusterIP\n  ports:\n  - port: 81\n",
			[]string{`f.yaml:11: Service web: is not YAML: the quotes opened here are never closed, expected a closing quote`}},
		{"tab", svc("web") + "spec:\n\ttype: ClusterIP\n",
			[]string{`f.yaml:11: Service web: is not YAML: found a character that no value begins with, expected spaces for indentation (not tabs) and quotes around such text`}},
		{"lost marker", svc("a") + svc("b"),
			[]string{"f.yaml:11: document: a second kind in one document, expected a line of --- between two documents"}},
		{"no kind", "metadata:\n  name: x\n",
			[]string{`f.yaml:6: x: has no apiVersion or no kind, expected both, such as "apiVersion: v1" and "kind: Service"`}},
		{"no name", "apiVersion: v1\nkind: Service\nmetadata:\n  generateName: x-\n",
			[]string{"f.yaml:8: Service: metadata.name: is missing, expected the object's name"}},
		{"a text", "just words\n",
			[]string{`f.yaml:6: document: is the text "just words", expected a mapping with apiVersion, kind and metadata`}},
		{"unknown alias", svc("a") + "spec: *nothing\n",
			[]string{"f.yaml:10: Service a: is not YAML: unknown anchor 'nothing' referenced"}},
		{"list as key", svc("a") + "spec:\n  ? [a]\n  : 1\n",
			[]string{"f.yaml:11: Service a: spec: has a list as a key, expected a text"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := svc("before") + "---\n" + tt.in + "---\n" + svc("after")
			docs, errs := Parse("f.yaml", []byte(in), known)
			var got []string
			for _, e := range errs {
				got = append(got, e.Error())
			}
			if tt.name == "no kind" {
				tt.want[0] = strings.Replace(tt.want[0], ": x:", ": document x:", 1)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("errors:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			if len(docs) != 2 || docs[0].Name != "before" || docs[1].Name != "after" {
				t.Errorf("the good documents around it: %+v", docs)
			}
		})
	}
}

func TestBrokenItemLeavesTheOthersOfItsList(t *testing.T) {
	in := "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n" +
		"- {apiVersion: v1, kind: Service, metadata: {name: b}, spec: 7}\n- {apiVersion: v1, kind: Service, metadata: {name: c}}\n"
	docs, errs := Parse("l.yaml", []byte(in), known)
	if len(docs) != 2 || docs[1].Name != "c" {
		t.Errorf("documents %+v", docs)
	}
	if len(errs) != 1 || errs[0].Error() != "l.yaml:5: Service b: spec: is the number 7, expected a mapping" {
		t.Errorf("errors %v", errs)
	}
}

func TestWarnings(t *testing.T) {
	in := "# c\n" + svc("web") + "spec:\n  colour: red\n  ports:\n  - port: 80\n    prot: TCP\n  type: NodePort\n  type: ClusterIP\n"
	docs, errs := Parse("w.yaml", []byte(in), known)
	if len(errs) > 0 || len(docs) != 1 {
		t.Fatalf("documents %v, errors %v", docs, errs)
	}
	var got []string
	for _, w := range docs[0].Warnings {
		got = append(got, w.Error())
	}
	want := []string{
		"w.yaml:12: Service web: spec.type: is given twice, the one at line 11 is ignored",
		"w.yaml:7: Service web: spec.colour: unknown field of Service, ignored",
		"w.yaml:10: Service web: spec.ports[0].prot: unknown field of Service, ignored",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s := docs[0].Object.(*corev1.Service); s.Spec.Type != corev1.ServiceTypeClusterIP {
		t.Errorf("type %q, want the last one given", s.Spec.Type)
	}
}

func TestScalars(t *testing.T) {
	in := "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations: {a: 2024-01-02, b: 'yes', c: \"1\", d: !!str 5, e: !!binary aGk=, f: Yep}\n" +
		"spec:\n  hostNetwork: yes\n  hostPID: off\n  priority: 0x10\n  activeDeadlineSeconds: 1_000\n  nodeName: ~\n"
	docs, errs := Parse("s.yaml", []byte(in), known)
	if len(errs) > 0 || len(docs) != 1 {
		t.Fatal(errs)
	}
	p := docs[0].Object.(*corev1.Pod)
	want := map[string]string{"a": "2024-01-02", "b": "yes", "c": "1", "d": "5", "e": "hi", "f": "Yep"}
	if !reflect.DeepEqual(p.Annotations, want) {
		t.Errorf("annotations %v, want %v", p.Annotations, want)
	}
	if !p.Spec.HostNetwork || p.Spec.HostPID || *p.Spec.Priority != 16 || *p.Spec.ActiveDeadlineSeconds != 1000 {
		t.Errorf("spec %+v", p.Spec)
	}
}

// TestScalarsAreReadAsKubernetesDoes compares with the YAML reader that kubectl uses.
func TestScalarsAreReadAsKubernetesDoes(t *testing.T) {
	for _, v := range []string{"y", "N", "yes", "No", "ON", "off", "oN", "true", "True", "tRUE", "~", "null", "NULL", "", "1", "-1", "+1", "012", "0o14", "0x1F", "0b11",
		"1_000", "1.5", "1e3", ".5", "'1'", "\"yes\"", "2024-01-02", "12:30", "18446744073709551615", "!!str 1", "!!int '7'", "!!binary aGk=", "a b", "[a, 1]", "{b: 2}", "1.2.3", "=", "|\n  x\n  y"} {
		in := []byte("a: " + v + "\n")
		want, err := sigsyaml.YAMLToJSON(in)
		if err != nil {
			t.Fatalf("%q: %v", v, err)
		}
		root, err := parseYAML(in)
		if err != nil {
			t.Fatalf("%q: %v", v, err)
		}
		e := encoder{budget: 100}
		if got, err := e.encode(root); err != nil || string(got) != string(want) {
			t.Errorf("%q is read as %s (error %v), want %s", v, got, err, want)
		}
	}
}

func TestLineOf(t *testing.T) {
	in := "---\n" + svc("web") + "  labels:\n    a.b/c: x\n    a: z\nspec:\n  ports:\n  - name: x\n    port: 80\n  - {name: z,\n     port: 81}\n"
	docs, errs := Parse("f.yaml", []byte(in), known)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for path, want := range map[string]int{
		"": 2, "kind": 3, "metadata.labels": 6, "metadata.labels[a.b/c]": 7, "metadata.labels.a.b/c": 7, "metadata.labels.a": 8,
		"spec": 9, "spec.ports": 10, "spec.ports[0]": 11, "spec.ports[0].port": 12, "spec.ports[1].port": 14,
		"spec.ports[1].protocol": 13, "spec.ports[7].port": 10, "spec.clusterIP": 9, "status.x": 2, "spec.ports[": 10,
	} {
		if got := docs[0].LineOf(path); got != want {
			t.Errorf("line of %q = %d, want %d", path, got, want)
		}
	}
}

// TestAliasBombs checks that documents which expand without bound are refused, soon.
func TestAliasBombs(t *testing.T) {
	var laughs, merges strings.Builder
	laughs.WriteString(svc("bomb") + "spec:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	merges.WriteString(svc("bomb") + "spec:\n  a0: &a0 {x: y}\n")
	for i := range 20 {
		fmt.Fprintf(&laughs, "  a%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 10), ", "))
		fmt.Fprintf(&merges, "  a%d: &a%d {<<: [%s]}\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 10), ", "))
	}
	for _, in := range []string{laughs.String(), merges.String(), svc("bomb") + "spec: &s\n  x: *s\n"} {
		docs, errs := Parse("b.yaml", []byte(in), known)
		if len(docs) != 0 || len(errs) != 1 || !strings.Contains(errs[0].Error(), "too large or too deep") {
			t.Errorf("documents %d, errors %v", len(docs), errs)
		}
	}
}

func TestGuessID(t *testing.T) {
	for in, want := range map[string]ID{
		svc("a"): {"v1", "Service", "", "a"},
		"kind: 'Pod' # c\nmetadata: # c\n  # c\n  labels:\n    name: no\n  name: \"p\"\n  namespace: n\nspec:\n  name: no\n": {"", "Pod", "n", "p"},
		"kind: Pod\nmetadata:\n  name: a: b\n": {"", "Pod", "", ""},
		svc("a") + svc("b"):                    {},
		"kind: List\n":                         {},
		"{":                                    {},
	} {
		if got := guessID([]byte(in)); got != want {
			t.Errorf("guessID(%q) = %+v, want %+v", in, got, want)
		}
	}
}

// FuzzParse checks that no input panics and that every line lies in the file.
func FuzzParse(f *testing.F) {
	for _, s := range []string{svc("a"), svc("a") + "---\n" + svc("b"), "\xef\xbb\xbf---", "{\"kind\":\"List\",\"items\":[{}]}",
		"a: &a\n  <<: *a\n  b: [*a]\n", "--- |\n x\n...\n%TAG\n", "? [a]\n: {b}\n", "\ud7ff{\"a\":\"\\ud83d\"}", "kind: x\napiVersion: y\n\ta:b",
		svc("x") + "spec:\n  ports: [{port: x}, {port: !!binary x}, !!int a]\n", "\xef\xbb\xbf%", "- \r\n-\r- &b *b\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, errs := Parse("f.yaml", data, known)
		lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") +
			strings.Count(string(data), "\u0085") + strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029") + 1
		for _, d := range docs {
			if d.Line < 1 || d.Line > lines || d.LineOf("spec.ports[0].port") < 1 {
				t.Fatalf("%s is at line %d of %d", d.ID, d.Line, lines)
			}
		}
		for _, e := range errs {
			if e.Line < 1 || e.Line > lines {
				t.Fatalf("%v: line of %d", e, lines)
			}
		}
	})
}
