package kernel

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
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
	on := func(nodes ...string) string {
		text := cluster
		for i, node := range nodes {
			a := fmt.Sprintf("{addresses: [10.244.%d.5]", i+1)
			text = strings.Replace(text, a, a+", nodeName: "+node, 1)
		}
		return text + empty
	}
	n.write(t, on("n2", "n2"))
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
	n.write(t, on("n1", "n2"))
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

// TestServiceCounters: with the setting each service's traffic is counted and told, an emptied ruleset is put right, and
// without it the tables go.
func TestServiceCounters(t *testing.T) {
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			n.Exec(t, "ip", "route", "add", "default", "via", "192.0.2.9")
			n.Exec(t, "ip", "route", "add", "10.244.1.0/24", "via", "192.0.2.9") // else the agent's says that there is no such pod
			cmd := n.agent(t, "--service-mode", mode, "--service-counters")
			connect := func() { _, _ = n.Output("curl", "-s", "--max-time", "0.2", "http://10.96.0.80/") } // nobody answers
			connect()
			told := func(what string) func() error {
				return func() error {
					out, err := n.Output(binary(t), "status", "services", "default/web", "--run-dir", filepath.Join(n.dir, "run"))
					if err != nil || !strings.Contains(out, what) {
						return fmt.Errorf("%v: %s", err, out)
					}
					return nil
				}
			}
			nstest.Wait(t, "the count", told("1 connections, 1 packets in (60 B), 0 out (0 B)"))
			out := n.Exec(t, "curl", "-s", "http://127.0.0.1:10249/metrics")
			for _, want := range []string{
				`braid_service_connections_total{address="10.96.0.80:80",kind="cluster IP",name="web",namespace="default",port="",protocol="TCP"} 1`,
				`braid_service_bytes_total{address="10.96.0.80:80",direction="in",kind="cluster IP",name="web",namespace="default",port="",protocol="TCP"} 60`,
			} {
				if !strings.Contains(out, want) {
					t.Errorf("no %s in\n%s", want, out)
				}
			}
			n.Exec(t, "nft", "delete", "table", "ip", "braid-traffic")
			nstest.Wait(t, "the table that was taken away", func() error { _, err := n.Output("nft", "list", "table", "ip", "braid-traffic"); return err })
			end(t, cmd, syscall.SIGTERM)
			n.agent(t, "--service-mode", mode)
			if tables := n.Exec(t, "nft", "list", "tables"); strings.Contains(tables, "braid-traffic") {
				t.Errorf("nobody asks for counters, and there are\n%s", tables)
			}
		})
	}
}

// TestServiceRangesAtOnce: a ServiceCIDR that comes or goes is in force as soon as the agent hears of it.
func TestServiceRangesAtOnce(t *testing.T) {
	const cidr = "---\napiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [10.97.0.0/16, \"fd00:10:97::/112\"]}\n"
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			n.agent(t, "--service-mode", mode)
			unused := func(want string) func() error { // what becomes of a connection to an address that no service has
				return func() error {
					_, err := n.Output("curl", "-s", "--max-time", "0.3", "http://10.97.1.2/")
					if err == nil || !strings.Contains(err.Error(), want) {
						return fmt.Errorf("curl: %v, want %s", err, want)
					}
					return nil
				}
			}
			n.Exec(t, "ip", "route", "add", "unreachable", "10.97.0.0/16")
			nstest.Wait(t, "nobody to care", unused("exit status 7")) // the route says no at once
			n.Exec(t, "ip", "route", "replace", "10.97.0.0/16", "dev", "lo")
			n.write(t, cluster+cidr)
			nstest.Wait(t, "silence", unused("exit status 28"))
			k := func() string { return n.kernel(t) }
			if !strings.Contains(k(), "10.97.0.0/16") || !strings.Contains(k(), "fd00:10:97::/112") {
				t.Errorf("the ranges are not in the rules:\n%s", k())
			}
			n.write(t, cluster)
			nstest.Wait(t, "the ranges to go", func() error {
				if text := k(); strings.Contains(text, "10.97.0.0/16") || strings.Contains(text, "fd00:10:97::/112") {
					return fmt.Errorf("still there:\n%s", text)
				}
				return nil
			})
		})
	}
}
