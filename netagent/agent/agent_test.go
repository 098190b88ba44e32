package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/netagent/status"
)

const nodeYAML = `apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
`

// start runs an agent that touches no kernel: what is tested is the wiring.
func start(t *testing.T, manifests string) (cfg Config, stop func() error) {
	t.Helper()
	dir := t.TempDir()
	cfg = Config{Node: "n1", Manifests: manifests, RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"),
		CNIConfDir: filepath.Join(dir, "cni"), Overlay: "none", VNI: 1, Port: 8472, ServiceMode: "none", Version: "test",
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	stop = func() error { cancel(); return <-done }
	t.Cleanup(func() { cancel() })
	return cfg, stop
}

// ask gets the report once it satisfies cond.
func ask(t *testing.T, cfg Config, what string, cond func(status.Report) bool) status.Report {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", cfg.Socket())
	}}}
	defer client.CloseIdleConnections()
	var r status.Report
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		resp, err := client.Get("http://agent/status")
		if err != nil {
			continue
		}
		r = status.Report{}
		err = json.NewDecoder(resp.Body).Decode(&r)
		resp.Body.Close()
		if err == nil && cond(r) {
			return r
		}
	}
	t.Fatalf("never saw %s; last report %+v", what, r)
	return r
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAgentWritesConflistWhenAllIsInForce(t *testing.T) {
	manifests := t.TempDir()
	cfg, stop := start(t, manifests)
	r := ask(t, cfg, "the missing node", func(r status.Report) bool { return len(r.Subsystems) == 1 && r.Subsystems[0].Failing })
	if !strings.Contains(r.Subsystems[0].Error, "node n1 is not in the cluster") || r.OK() {
		t.Errorf("status does not say what is missing: %+v", r)
	}
	path := filepath.Join(cfg.CNIConfDir, Conflist)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a conflist before the node is known: %v", err)
	}
	write(t, filepath.Join(manifests, "node.yaml"), nodeYAML)
	ask(t, cfg, "a good state", func(r status.Report) bool { return r.OK() && r.Objects["Node"] == 1 })
	var list struct {
		CNIVersion, Name string
		Plugins          []struct {
			Type string
			IPAM struct {
				Ranges  [][]struct{ Subnet string }
				DataDir string
			}
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	p := list.Plugins[0]
	if p.Type != "braid" || len(p.IPAM.Ranges) != 2 || p.IPAM.Ranges[1][0].Subnet != "fd00:10:244:1::/64" || p.IPAM.DataDir != filepath.Join(cfg.StateDir, "networks") {
		t.Errorf("conflist %s", data)
	}
	if err := stop(); err != nil {
		t.Errorf("a stopped agent must end well: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("a stopped agent leaves the conflist: %v", err)
	}
}

func TestBrokenManifestShowsInStatusAndLosesNothing(t *testing.T) {
	manifests := t.TempDir()
	file := filepath.Join(manifests, "node.yaml")
	write(t, file, nodeYAML)
	cfg, stop := start(t, manifests)
	defer stop()
	ask(t, cfg, "a good state", func(r status.Report) bool { return r.OK() })
	write(t, file, strings.Replace(nodeYAML, "10.244.1.0/24", "10.244.one.0/24", 1))
	r := ask(t, cfg, "the problem", func(r status.Report) bool { return len(r.Problems) == 1 })
	if !strings.Contains(r.Problems[0].Text, "node.yaml:4") || r.Objects["Node"] != 1 || !r.OK() {
		t.Errorf("want file:line and the last good node: %+v", r)
	}
	write(t, file, nodeYAML)
	ask(t, cfg, "no problem any more", func(r status.Report) bool { return len(r.Problems) == 0 })
}

func TestSocketOfALivingAgentIsRefusedAndOfADeadOneTaken(t *testing.T) {
	manifests := t.TempDir()
	write(t, filepath.Join(manifests, "node.yaml"), nodeYAML)
	cfg, stop := start(t, manifests)
	ask(t, cfg, "a good state", func(r status.Report) bool { return r.OK() })
	if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another agent answers") {
		t.Errorf("second agent: %v", err)
	}
	if _, err := Cleanup(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("cleanup beside a running agent: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", cfg.Socket()) // leave a file behind, as a killed agent does
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	got, err := listenSocket(cfg.Socket())
	if err != nil {
		t.Fatalf("the socket of a dead agent must be taken over: %v", err)
	}
	got.Close()
}

func TestUnreadableSourceEndsTheAgentWithAReason(t *testing.T) {
	cfg, _ := start(t, t.TempDir())
	cfg.RunDir = filepath.Join(t.TempDir(), "run")
	cfg.Manifests = "/nonexistent/manifests"
	if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "/nonexistent/manifests") {
		t.Errorf("got %v", err)
	}
}

func TestValidate(t *testing.T) {
	good := Config{Node: "n", RunDir: "/r", StateDir: "/s", Overlay: "vxlan", ServiceMode: "auto", VNI: 1, Port: 8472}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		`overlay: unknown backend "vxlam": use one of vxlan, host-gw, none`: func(c *Config) { c.Overlay = "vxlam" },
		"service-mode: unknown mode":                                        func(c *Config) { c.ServiceMode = "ebpf" },
		"vni: 0 is out of range":                                            func(c *Config) { c.VNI = 0 },
		"vxlan-port: 70000":                                                 func(c *Config) { c.Port = 70000 },
		"give one of them":                                                  func(c *Config) { c.Manifests, c.Kubeconfig = "a", "b" },
		"must be absolute":                                                  func(c *Config) { c.RunDir = "run" },
		"name of this node":                                                 func(c *Config) { c.Node = "" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
