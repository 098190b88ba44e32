package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/containernetworking/cni/pkg/types"
)

func (p *pod) ping(t testing.TB, to string, args ...string) {
	t.Helper()
	p.Exec(t, "ping", append([]string{"-n", "-c", "1", "-W", "5", to}, args...)...)
}

func TestTwoPods(t *testing.T) { inBothModes(t, testTwoPods) }

func testTwoPods(t *testing.T) {
	h := newHost(t)
	bridges := 1
	if podMode == modeRouted {
		bridges = 0
	}
	a, b := newPod(t, "pod-a"), newPod(t, "pod-b")
	ra, rb := h.add(a.attach), h.add(b.attach)

	for i, want := range []string{"10.244.1.2/32", "fd00:10:244:1::2/128"} {
		ip := ra.IPs[i]
		if ip.Address.String() != want || ip.Interface == nil || *ip.Interface != bridges+1 {
			t.Errorf("address %d: %v, want %s on interface %d", i, ip, want, bridges+1)
		}
	}
	if n := len(ra.Interfaces); n != bridges+2 || ra.Interfaces[bridges].Name != a.hostVeth() || ra.Interfaces[bridges+1].Sandbox != a.netns {
		t.Errorf("interfaces %v", ra.Interfaces)
	}
	if bridges == 1 && ra.Interfaces[0].Mac != rb.Interfaces[0].Mac {
		t.Errorf("the bridge changed its address from %s to %s", ra.Interfaces[0].Mac, rb.Interfaces[0].Mac)
	}

	for _, to := range []string{"10.244.1.1", "fd00:10:244:1::1", "10.244.1.3", "fd00:10:244:1::3", "127.0.0.1", "::1"} {
		a.ping(t, to)
	}
	b.ping(t, "10.244.1.2", "-M", "do", "-s", "1422") // exactly 1450 bytes
	for _, p := range []*pod{a, b} {
		h.Exec(t, "ping", "-n", "-c", "1", "-W", "5", p.address(t))
	}
	// Pods meet through the node, which counts what it forwards.
	if n := strings.Fields(h.Exec(t, "nstat", "-asz", "IpForwDatagrams")); len(n) < 3 || n[len(n)-2] == "0" {
		t.Errorf("pod traffic went past the node's IP stack: %v", n)
	}
	if out := h.Exec(t, "ip", "link", "show", a.hostVeth()); !strings.Contains(out, "alias default/pod-a") || !strings.Contains(out, "mtu 1450") {
		t.Errorf("host end: %s", out)
	}
	if out := h.Exec(t, "bridge", "-d", "link", "show", "dev", a.hostVeth()); bridges == 1 && !strings.Contains(out, "hairpin on") {
		t.Errorf("bridge port: %s", out)
	}

	for _, p := range []*pod{a, b} {
		h.del(p.attach)
		h.del(p.attach)
	}
	h.clean("after DEL")
	if out := a.Exec(t, "ip", "-o", "link"); strings.Contains(out, "eth0") {
		t.Errorf("the pod keeps its interface: %s", out)
	}
}

// address is the pod's IPv4 address as the pod sees it.
func (p *pod) address(t testing.TB) string {
	t.Helper()
	fields := strings.Fields(p.Exec(t, "ip", "-4", "-o", "addr", "show", "dev", "eth0"))
	return strings.TrimSuffix(fields[3], "/32")
}

func TestPodSysctlsAndRoutes(t *testing.T) {
	h := newHost(t)
	p := newPod(t, "pod")
	h.add(p.attach)
	for _, key := range []string{"net/ipv4/conf/all/accept_redirects", "net/ipv4/conf/eth0/accept_redirects",
		"net/ipv6/conf/eth0/accept_redirects", "net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/eth0/disable_ipv6"} {
		p.Run(t, func() error {
			v, err := os.ReadFile("/proc/sys/" + key)
			if err == nil && strings.TrimSpace(string(v)) != "0" {
				t.Errorf("%s is %s", key, v)
			}
			return err
		})
	}
	h.Run(t, func() error {
		v, err := os.ReadFile("/proc/sys/net/ipv4/conf/braid0/send_redirects")
		if err == nil && strings.TrimSpace(string(v)) != "0" {
			t.Errorf("send_redirects of braid0 is %s", v)
		}
		return err
	})
	for cmd, want := range map[string]string{
		"-4": "default via 10.244.1.1 dev eth0 proto 66 \n10.244.1.1 dev eth0 proto 66 scope link \n",
		"-6": "fd00:10:244:1::1 dev eth0 proto 66 metric 1024 pref medium\n",
	} {
		if out := p.Exec(t, "ip", cmd, "route", "show"); !strings.Contains(out, want) {
			t.Errorf("ip %s route:\n%s\nwant\n%s", cmd, out, want)
		}
	}
	if out := p.Exec(t, "ip", "-6", "addr", "show", "tentative"); out != "" {
		t.Errorf("addresses still tentative: %s", out)
	}
}

func TestAddressOfARemovedPodWorksAtOnce(t *testing.T) {
	h := newHost(t)
	h.conf["ipam"].(map[string]any)["ranges"] = []any{[]any{map[string]string{"subnet": "10.244.1.0/30"}},
		[]any{map[string]string{"subnet": "fd00:10:244:1::/126", "rangeEnd": "fd00:10:244:1::2"}}}
	for i := range 3 {
		p := newPod(t, fmt.Sprint("pod", i))
		h.add(p.attach)
		for _, to := range []string{"10.244.1.2", "fd00:10:244:1::2"} {
			h.Exec(t, "ping", "-n", "-c", "1", "-W", "1", to)
		}
		h.del(p.attach)
	}
}

func TestCheckNamesEachDamage(t *testing.T) {
	h := newHost(t)
	p := newPod(t, "pod")
	result := h.add(p.attach)
	if failure := h.check(p.attach, result); failure != nil {
		t.Fatalf("CHECK of a whole attachment: %v", failure)
	}
	if _, failure := h.call("CHECK", p.attach, h.with(nil)); failure == nil || failure.Code != types.ErrInvalidNetworkConfig {
		t.Errorf("CHECK without prevResult: %v", failure)
	}
	for _, c := range []struct {
		in           *nstest.NS
		damage, mend string
		want         string
	}{
		{p.NS, "ip addr del 10.244.1.2/32 dev eth0", "", "address 10.244.1.2/32 is missing on eth0"},
		{p.NS, "ip addr add 10.244.1.2/32 dev eth0", "", "route 10.244.1.1/32 on the link is missing"},
		{p.NS, "ip route add 10.244.1.1 dev eth0", "", "route 0.0.0.0/0 via 10.244.1.1 is missing"},
		{p.NS, "ip route add default via 10.244.1.1", "", ""},
		{p.NS, "ip -6 route del default", "ip -6 route add default via fd00:10:244:1::1", "route ::/0 via fd00:10:244:1::1 is missing"},
		{p.NS, "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1450", "eth0 in the pod has mtu 1400, expected 1450"},
		{h.NS, "bridge link set dev HOST hairpin off", "bridge link set dev HOST hairpin on", "is not in hairpin mode"},
		{h.NS, "ip link set HOST nomaster", "ip link set HOST master braid0", "is not a port of braid0"},
		{h.NS, "ip addr del 10.244.1.1/24 dev braid0", "ip addr add 10.244.1.1/24 dev braid0", "gateway address 10.244.1.1/24 is missing"},
		{h.NS, "bridge link set dev HOST hairpin on", "", ""},
		{h.NS, "rm " + filepath.Join(h.dir, "braid", "10.244.1.2"), "", "reserved addresses are [fd00:10:244:1::2], expected [10.244.1.2 fd00:10:244:1::2]"},
		{h.NS, "ip link del HOST", "", "the pod has no interface eth0"},
	} {
		words := strings.Fields(strings.ReplaceAll(c.damage, "HOST", p.hostVeth()))
		c.in.Exec(t, words[0], words[1:]...)
		failure := h.check(p.attach, result)
		switch {
		case c.want == "" && failure != nil:
			t.Errorf("after %q: %v", c.damage, failure)
		case c.want != "" && (failure == nil || failure.Code != errDiffers || !strings.Contains(failure.Details, c.want)):
			t.Errorf("after %q: %v, want %q", c.damage, failure, c.want)
		}
		if c.mend != "" {
			words := strings.Fields(strings.ReplaceAll(c.mend, "HOST", p.hostVeth()))
			c.in.Exec(t, words[0], words[1:]...)
		}
	}
}

func TestDelWithoutNamespace(t *testing.T) {
	h := newHost(t)
	gone, unnamed, never := newPod(t, "gone"), newPod(t, "unnamed"), attach{"never", "/run/netns/none", "eth0"}
	remove := gone.removable(t)
	h.add(gone.attach)
	remove()
	h.del(gone.attach)
	h.del(gone.attach)

	h.add(unnamed.attach)
	unnamed.netns = ""
	h.del(unnamed.attach)
	h.del(never)
	h.clean("after DEL")
}

func TestDelWithABrokenConfiguration(t *testing.T) {
	h := newHost(t)
	p := newPod(t, "pod")
	h.add(p.attach)
	if _, failure := h.call("DEL", p.attach, h.with(map[string]any{"mtu": "big", "bridge": 7, "logLevel": "loud"})); failure != nil {
		t.Errorf("DEL: %v", failure)
	}
	h.clean("after DEL")
}

func TestAddRefusesAnExistingInterface(t *testing.T) {
	h := newHost(t)
	p, other := newPod(t, "pod"), nstest.New(t)
	nstest.Veth(t, p.NS, "eth0", other, "far")
	_, failure := h.call("ADD", p.attach, h.with(nil))
	if failure == nil || failure.Code != types.ErrInvalidEnvironmentVariables || !strings.Contains(failure.Msg, "CNI_IFNAME is eth0") {
		t.Errorf("got %v", failure)
	}
	h.clean("after a refused ADD")
	p.Exec(t, "ip", "link", "show", "eth0")
}

func TestSecondAddLeavesTheFirstAlone(t *testing.T) {
	h := newHost(t)
	p, elsewhere := newPod(t, "pod"), newPod(t, "other")
	result := h.add(p.attach)
	again := p.attach
	again.netns = elsewhere.netns
	if _, failure := h.call("ADD", again, h.with(nil)); failure == nil || !strings.Contains(failure.Msg, "call DEL before ADD") {
		t.Errorf("second ADD: %v", failure)
	}
	if failure := h.check(p.attach, result); failure != nil {
		t.Errorf("the first attachment after the second ADD: %v", failure)
	}
}

func TestFailedAddLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		spoil   func(h *host, p *pod)
		want    string
		survive string // a link of the node that is not ours to remove
	}{
		"host name taken": {func(h *host, p *pod) {
			h.Exec(t, "ip", "link", "add", p.hostVeth()+"x", "type", "bridge")
			h.Exec(t, "ip", "link", "set", p.hostVeth()+"x", "name", p.hostVeth())
		}, "call DEL before ADD", "HOST"},
		"pod has a default route": {func(h *host, p *pod) {
			p.Exec(t, "ip", "link", "set", "lo", "up")
			p.Exec(t, "ip", "route", "add", "default", "dev", "lo")
		}, "add route 0.0.0.0/0 via 10.244.1.1 through eth0 in the pod: file exists", ""},
		"bridge is none": {func(h *host, p *pod) {
			nstest.Veth(t, h.NS, "braid0", nstest.New(t), "far")
		}, "interface braid0 is a veth, not a bridge", "braid0"},
		"range is full": {func(h *host, p *pod) {
			h.conf["ipam"].(map[string]any)["ranges"] = []any{[]any{map[string]string{"subnet": "fd00::/64"}},
				[]any{map[string]string{"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.1"}}}
		}, "no free address in 10.0.0.1-10.0.0.1: 0 of 0 in use", ""},
		"folder is a file": {func(h *host, p *pod) {
			if err := os.WriteFile(filepath.Join(h.dir, "file"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			h.conf["ipam"].(map[string]any)["dataDir"] = filepath.Join(h.dir, "file")
		}, "not a directory", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			p := newPod(t, "pod")
			c.spoil(h, p)
			if _, failure := h.call("ADD", p.attach, h.with(nil)); failure == nil || !strings.Contains(failure.Msg, c.want) {
				t.Errorf("ADD: %v, want %q", failure, c.want)
			}
			if survive := strings.ReplaceAll(c.survive, "HOST", p.hostVeth()); survive != "" {
				h.Exec(t, "ip", "link", "show", survive)
				h.Exec(t, "ip", "link", "del", survive)
			}
			h.clean("after a failed ADD")
			if out := p.Exec(t, "ip", "-o", "link"); strings.Contains(out, "eth0") {
				t.Errorf("interface left in the pod: %s", out)
			}
		})
	}
}

// TestKilledAddIsUndoneByDel kills ADD after various times; whatever it had
// done, DEL must leave nothing and the next ADD must work.
func TestKilledAddIsUndoneByDel(t *testing.T) {
	h := newHost(t)
	for after := time.Duration(0); after < 24*time.Millisecond; after += 2 * time.Millisecond {
		p := newPod(t, "pod")
		cmd, _, _ := h.command("ADD", p.attach, h.with(nil))
		if err := h.Start(cmd); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(after, func() { _ = cmd.Process.Signal(syscall.SIGKILL) })
		_ = cmd.Wait()
		h.del(p.attach)
		h.clean(fmt.Sprintf("ADD killed after %s, DEL", after))
		h.add(p.attach)
		h.del(p.attach)
	}
}

func TestFiftyAddsAtOnce(t *testing.T) {
	h := newHost(t)
	const n = 50
	pods := make([]*pod, n)
	for i := range pods {
		pods[i] = newPod(t, fmt.Sprintf("pod%d", i))
	}
	var mu sync.Mutex
	seen := map[string]string{}
	var wg sync.WaitGroup
	for _, p := range pods {
		wg.Go(func() {
			out, failure := h.call("ADD", p.attach, h.with(nil))
			if failure != nil {
				t.Errorf("ADD %s: %v", p.id, failure)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, ip := range h.result(out).IPs {
				if other, twice := seen[ip.Address.String()]; twice {
					t.Errorf("%s and %s both have %s", other, p.id, ip.Address.String())
				}
				seen[ip.Address.String()] = p.id
			}
		})
	}
	wg.Wait()
	if len(seen) != 2*n || len(h.reserved()) != 2*n {
		t.Errorf("%d addresses, %d reservations, want %d", len(seen), len(h.reserved()), 2*n)
	}
	if t.Failed() {
		return
	}
	pods[0].ping(t, pods[n-1].address(t))
	for _, p := range pods {
		wg.Go(func() { h.del(p.attach) })
	}
	wg.Wait()
	h.clean("after 50 DELs")
}

func TestAddIntoTheNodeItselfIsRefused(t *testing.T) {
	h := newHost(t)
	_, failure := h.call("ADD", attach{"pod", h.Path(), "eth0"}, h.with(nil))
	if failure == nil || failure.Code != types.ErrInvalidNetNS {
		t.Errorf("got %v", failure)
	}
	h.clean("after a refused ADD")
	if _, failure = h.call("ADD", attach{"pod", "/run/netns/none-such", "eth0"}, h.with(nil)); failure == nil || failure.Code != types.ErrInvalidNetNS {
		t.Errorf("missing namespace: %v", failure)
	}
}

func TestVersion(t *testing.T) {
	cmd := exec.Command(binary)
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	out, err := cmd.Output()
	if want := `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n"; err != nil || string(out) != want {
		t.Errorf("got %s %v, want %s", out, err, want)
	}
}
