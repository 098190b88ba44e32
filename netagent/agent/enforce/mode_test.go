package enforce

import (
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/netagent/policy/iptables"
	"github.com/braidnet/braid/netagent/policy/nftables"
)

// TestModeOfNode: without nftables the mode is iptables, and it is said why; what cannot be enforced in any way is an
// error, and so is a mode that somebody insists on.
func TestModeOfNode(t *testing.T) {
	noTables, noSets := errors.New("no nf_tables here"), errors.New("no ip_set here")
	for _, tt := range []struct {
		mode      string
		nft, ipt  error
		want, why string // why: of the mode, or the error
	}{
		{"auto", nil, nil, "nftables", "the kernel can, and it is the best"},
		{"auto", noTables, nil, "iptables", "no nf_tables here; variant nft: asked for"},
		{"auto", noTables, noSets, "", "no nf_tables here; nor does policy mode iptables work here: no ip_set here"},
		{"nftables", noTables, nil, "", "no nf_tables here"},
		{"nftables", nil, noSets, "nftables", "setting policy-mode"},
		{"iptables", nil, nil, "iptables", "setting policy-mode; variant nft: asked for"},
		{"iptables", nil, noSets, "", "no ip_set here"},
	} {
		plane, why, err := openEither(Config{Mode: tt.mode, Log: slog.New(slog.DiscardHandler)},
			func(*slog.Logger, nftables.Options) (*nftablesPlane, error) { return &nftablesPlane{}, tt.nft },
			func(*slog.Logger, iptables.Options, bool) (*iptablesPlane, error) {
				return &iptablesPlane{variant: "nft", why: "asked for"}, tt.ipt
			})
		if tt.want == "" {
			if err == nil || err.Error() != tt.why {
				t.Errorf("%+v: error %v", tt, err)
			}
			continue
		}
		if err != nil || plane.Name() != tt.want || why != tt.why {
			t.Errorf("%+v: %v because %q, error %v", tt, plane, why, err)
		}
	}
}

// TestNoBridgeFilter: on a node without br_netfilter frames between pods on the bridge would pass no iptables rule, so
// that mode does not start there; and an agent that runs fails, in status and readiness, instead of leaving pods open.
func TestNoBridgeFilter(t *testing.T) {
	l := iptablesLab(t, "nft")
	l.change(allowing("web", "b", "192.0.2.0/24"))
	l.reaches(false, "isolated")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends, and what it sees of the machine with it
		for _, err := range []error{unix.Setns(l.node.Fd(), unix.CLONE_NEWNET), unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS),
			unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("none", "/proc/sys/net/bridge", "tmpfs", 0, "")} {
			if err != nil {
				t.Errorf("hide br_netfilter: %v", err)
				return
			}
		}
		if _, err := l.Step(t.Context()); !errors.Is(err, link.ErrNoBridgeFilter) || !strings.Contains(err.Error(), "pods could send past the policies") {
			t.Errorf("an agent that runs: error %v", err)
		}
		for bridge, fails := range map[string]bool{"braid0": true, "none0": false} {
			p, err := newIPTables(slog.New(slog.DiscardHandler), iptables.Options{Bridge: bridge, Links: "brd"}, false)
			if errors.Is(err, link.ErrNoBridgeFilter) != fails || err != nil && !fails {
				t.Errorf("start beside bridge %s: error %v", bridge, err)
			}
			if err == nil {
				p.Close()
			}
		}
		if _, err := newIPTables(slog.New(slog.DiscardHandler), iptables.Options{Bridge: "none0", Links: "brd"}, true); !errors.Is(err, link.ErrNoBridgeFilter) {
			t.Errorf("start where new pods come behind a bridge: error %v", err)
		}
	}()
	<-done
	l.reaches(false, "after an agent that cannot enforce")
	l.mustStep()
}
