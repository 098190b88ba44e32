package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
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
	cfg = DefaultConfig()
	cfg.Node, cfg.Manifests, cfg.RunDir, cfg.StateDir = "n1", manifests, filepath.Join(dir, "run"), filepath.Join(dir, "state")
	cfg.CNIConfDir, cfg.Overlay, cfg.ServiceMode, cfg.HTTP, cfg.HealthzBind = filepath.Join(dir, "cni"), "none", "none", "", ""
	cfg.IPMasq, cfg.Policy = "false", "off" // this is the machine's own network
	cfg.Version, cfg.Log = "test", slog.New(slog.NewTextHandler(io.Discard, nil))
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
	var r status.Report
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		got, err := status.Fetch(t.Context(), cfg.Socket())
		if err != nil {
			continue
		}
		if r = *got; cond(r) {
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
	good := DefaultConfig()
	good.Node = "n"
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		`overlay: unknown backend "vxlam": use one of vxlan, host-gw`: func(c *Config) { c.Overlay = "vxlam" },
		"service-mode: unknown mode":                                  func(c *Config) { c.ServiceMode = "ebpf" },
		"vni: 0 is out of range":                                      func(c *Config) { c.VNI = 0 },
		"vxlan-port: 70000":                                           func(c *Config) { c.Port = 70000 },
		"give one of them":                                            func(c *Config) { c.Manifests, c.Kubeconfig = "a", "b" },
		"direct-routing: it belongs to overlays vxlan and ipip":       func(c *Config) { c.Overlay, c.Direct = "host-gw", true },
		"vxlan-gbp: it belongs to overlay vxlan":                      func(c *Config) { c.Overlay, c.GBP = "none", true },
		"mtu: 500 is out of range":                                    func(c *Config) { c.MTU = 500 },
		"wireguard-port: 0":                                           func(c *Config) { c.WireGuardPort = 0 },
		"wireguard-key-age: 5s is too short":                          func(c *Config) { c.KeyAge = 5 * time.Second },
		"allocate-node-cidrs: with manifests":                         func(c *Config) { c.AllocateNodeCIDRs, c.Manifests = true, "m" },
		`cluster-cidr: "": to allocate`:                               func(c *Config) { c.AllocateNodeCIDRs = true },
		"node-cidr-mask-size: 24 does not fit into 10.0.0.0/25":       func(c *Config) { c.AllocateNodeCIDRs, c.DetectLocal.ClusterCIDR = true, "10.0.0.0/25" },
		"must be absolute":                                            func(c *Config) { c.RunDir = "run" },
		"name of this node":                                           func(c *Config) { c.Node = "" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestNodeThatAppearsLateIsTakenUpAtOnceAndItsChangeFollowed(t *testing.T) {
	manifests := t.TempDir()
	cfg, stop := start(t, manifests)
	defer stop()
	path := filepath.Join(cfg.CNIConfDir, Conflist)
	// Long enough that pauses between attempts are longer than ask waits.
	ask(t, cfg, "some failed attempts", func(r status.Report) bool { return len(r.Subsystems) == 1 && r.Subsystems[0].Errors >= 6 })
	node := filepath.Join(manifests, "node.yaml")
	write(t, node, nodeYAML)
	ask(t, cfg, "the late node", func(r status.Report) bool { return r.OK() })
	write(t, node, strings.Replace(nodeYAML, "10.244.1.0/24", "10.244.7.0/24", 1))
	r := ask(t, cfg, "the new pod CIDR", func(r status.Report) bool {
		return strings.Contains(r.Subsystems[0].Summary, "10.244.7.0/24") && r.Subsystems[0].Revision == r.Revision
	})
	if data, err := os.ReadFile(path); err != nil || !strings.Contains(string(data), "10.244.7.0/24") || strings.Contains(string(data), "10.244.1.0/24") {
		t.Errorf("status is %+v and the conflist %s (%v)", r.Subsystems, data, err)
	}
	if err := os.Remove(node); err != nil {
		t.Fatal(err)
	}
	ask(t, cfg, "the missing node", func(r status.Report) bool { return r.Subsystems[0].Failing })
	if _, err := os.Stat(path); err != nil {
		t.Errorf("a node that is gone from the cluster for a moment must not lose its pods' configuration: %v", err)
	}
}

// TestRevisionIsNotClaimedBeforeItsChangesAreTold: the store counts a batch before its subscribers
// have seen it.
func TestRevisionIsNotClaimedBeforeItsChangesAreTold(t *testing.T) {
	a := &Agent{store: model.NewStore(), byName: map[string]*reconcile.Loop{}, log: slog.New(slog.DiscardHandler)}
	a.addLoop("cni", func(context.Context) (reconcile.Outcome, error) { return reconcile.Outcome{}, nil }, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go a.loops[0].Run(ctx)
	<-a.loops[0].Ready()
	node := model.Origin{Ref: model.Ref{Kind: model.KindNode, Key: model.Key{Name: "n1"}}}
	a.store.Subscribe(func(rev uint64, changes []model.Change) {
		if got := a.report().Subsystems[0].Revision; got != 0 {
			t.Errorf("revision %d is called programmed before anybody heard of it", got)
		}
		a.onChange(rev, changes)
	})
	a.store.Apply([]model.Update{model.Set(&model.Node{Origin: node})})
	for r := a.report(); r.Subsystems[0].Revision != 1; r = a.report() {
		if s := r.Subsystems[0]; !s.Pending {
			t.Fatalf("neither pending nor programmed: %+v", s)
		}
		runtime.Gosched()
	}
}

func TestCleanupRefusesFoldersItCannotMean(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.MkdirAll("networks/braid", 0o755); err != nil {
		t.Fatal(err)
	}
	if removed, err := Cleanup(t.Context(), Config{RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}); err == nil || len(removed) > 0 {
		t.Errorf("an empty state-dir is the working folder: removed %v, %v", removed, err)
	}
	if _, err := os.Stat("networks/braid"); err != nil {
		t.Error(err)
	}
}

// A policy that is not enforced must be impossible to overlook.
func TestUnenforcedPolicyIsLoud(t *testing.T) {
	manifests := t.TempDir()
	write(t, filepath.Join(manifests, "node.yaml"), nodeYAML+`---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {}}
`)
	cfg, stop := start(t, manifests)
	defer stop()
	r := ask(t, cfg, "the policy", func(r status.Report) bool { return r.OK() && r.Policies == 1 })
	var text strings.Builder
	if err := r.Text(&text, time.Now()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "WARNING: 1 NetworkPolicy objects are read but NOT enforced") {
		t.Errorf("status does not warn:\n%s", text.String())
	}
}
