package kernel

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// empty is a service whose selector matches nothing.
const empty = `---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {clusterIP: 10.96.0.82, ports: [{name: http, port: 80}]}
`

// TestStatusOfServices: the agent says of each service what is in force, as text and as JSON, and why there
// is nothing behind one.
func TestStatusOfServices(t *testing.T) {
	n := newNode(t)
	n.write(t, cluster+empty)
	n.agent(t)
	ask := func(args ...string) (string, error) {
		return n.Output(binary(t), append([]string{"status", "services", "--run-dir", filepath.Join(n.dir, "run")}, args...)...)
	}
	want := func(args []string, lines ...string) {
		t.Helper()
		nstest.Wait(t, fmt.Sprint("status services ", args), func() error {
			out, err := ask(args...)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			for _, l := range lines {
				if !regexp.MustCompile(l).MatchString(out) {
					return fmt.Errorf("no line like %q in\n%s", l, out)
				}
			}
			return nil
		})
	}
	want(nil, `(?m)^default/web +\d+ +\S+ ago +4 +2 +2: no endpoints: no IPv6 EndpointSlice`, `(?m)^default/nobody +\d+ +\S+ ago +1 +0 +1: no endpoints`)
	want([]string{"default/web"}, `(?m)^service default/web on node n1: revision \d+, in force \S+ ago$`,
		`(?m)^10\.96\.0\.80:80/TCP +cluster IP +- +10\.244\.1\.5:8080, 10\.244\.2\.5:8080 `, `(?m)^\[::\]:30080/TCP +node port +- +none, refused: no endpoints`)
	n.write(t, strings.Replace(cluster, "{addresses: [10.244.1.5]}", "{addresses: [10.244.1.5], nodeName: n1}", 1)+empty)
	want([]string{"default/web"}, `10\.244\.1\.5:8080 \(here\), 10\.244\.2\.5:8080`)
	var report struct {
		Services map[string]struct {
			Programmed uint64
			InForce    string
			Frontends  []struct {
				At       string
				Backends []struct{ At string }
				Why      string
			}
		}
	}
	out, err := ask("default/nobody", "-o", "json")
	if err != nil {
		t.Fatal(err, out)
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err)
	}
	if s := report.Services["default/nobody"]; s.Programmed == 0 || s.InForce == "" || len(s.Frontends) != 1 || s.Frontends[0].At != "10.96.0.82:80/TCP" || s.Frontends[0].Why == "" {
		t.Errorf("%+v", s)
	}
	for name, answer := range map[string]string{"default/web2": "the agent of node n1 knows of none by that name", "web": "give it as NAMESPACE/NAME"} {
		if out, err := ask(name); err == nil || !strings.Contains(out+err.Error(), answer) {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
}
