package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/braidnet/braid/cni/ipam"
	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// TestIsolate: a pod is connected when the agent has its policies in the kernel, or the kernel cuts off
// whom it does not know; else it waits.
func TestIsolate(t *testing.T) {
	ns := nstest.New(t)
	answer := http.StatusOK
	var told map[string]any
	agent := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/attachments" {
			t.Errorf("asked %s %s", r.Method, r.URL)
		}
		if err := json.NewDecoder(r.Body).Decode(&told); err != nil {
			t.Error(err)
		}
		w.WriteHeader(answer)
	}))
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	agent.Listener = listener
	agent.Start()
	defer agent.Close()

	four := []ipam.Lease{{Addr: netip.MustParseAddr("10.0.0.5")}}
	both := append(four, ipam.Lease{Addr: netip.MustParseAddr("fd00::5")})
	first := false
	run := func(socket string, leases []ipam.Lease) (code uint) {
		ns.Run(t, func() error {
			conf := &config{PolicySocket: socket, PolicyFirst: first, Log: slog.New(slog.DiscardHandler)}
			err := isolate(conf, &skel.CmdArgs{ContainerID: "c"}, podID{"shop/web", "u1"}, "brd1", leases)
			var e *types.Error
			if errors.As(err, &e) {
				code = e.Code
			} else if err != nil {
				t.Errorf("an error without a code: %v", err)
			}
			return nil
		})
		return code
	}
	is := func(what string, got, want uint) {
		t.Helper()
		if got != want {
			t.Errorf("%s: code %d, want %d", what, got, want)
		}
	}
	is("nobody enforces policy", run("", both), 0)
	is("the agent has it", run(socket, both), 0)
	if told["namespace"] != "shop" || told["name"] != "web" || told["uid"] != "u1" || told["link"] != "brd1" || len(told["addresses"].([]any)) != 2 {
		t.Errorf("the agent was told %v", told)
	}
	answer = http.StatusServiceUnavailable
	is("the agent does not know the pod, nothing in the kernel", run(socket, four), types.ErrTryAgainLater)
	is("no agent, nothing in the kernel", run(socket+"x", four), types.ErrTryAgainLater)
	ns.Exec(t, "nft", "add", "table", "ip", policyTable)
	is("the agent does not know the pod, the kernel cuts it off", run(socket, four), 0)
	is("no agent, the kernel cuts it off", run(socket+"x", four), 0)
	is("no agent, the kernel cuts off IPv4 only", run(socket+"x", both), types.ErrTryAgainLater)
	ns.Exec(t, "nft", "delete", "table", "ip", policyTable)
	ns.Exec(t, "ipset", "create", xt.PolicySet(false)+"b", "hash:ip")
	is("no agent, sets that no rule refers to", run(socket+"x", four), types.ErrTryAgainLater)
	ns.Exec(t, "iptables-nft", "-A", "FORWARD", "-m", "set", "--match-set", xt.PolicySet(false)+"b", "src", "-j", "RETURN")
	is("no agent, iptables rules cut it off", run(socket+"x", four), 0)
	is("no agent, iptables rules cut off IPv4 only", run(socket+"x", both), types.ErrTryAgainLater)
	first = true
	is("the agent does not know the pod, and has to", run(socket, four), types.ErrTryAgainLater)
	is("no agent, and there has to be one", run(socket+"x", four), types.ErrTryAgainLater)
	is("nobody enforces policy, and somebody has to know the pod first", run("", four), 0)
	answer = http.StatusOK
	is("the agent has it, and has to", run(socket, four), 0)
}
