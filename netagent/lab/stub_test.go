package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/netagent/status"
)

// The test binary stands in for the three programs of a lab: under their names it behaves as they
// do as far as the lab can tell.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "netagent":
		if len(os.Args) > 1 && os.Args[1] == "run" {
			exit(stubAgent(os.Args[2:]))
		}
		c := Command()
		c.SilenceErrors, c.SilenceUsage = true, true
		c.SetArgs(os.Args[2:])
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		exit(c.ExecuteContext(ctx))
	case "coredns":
		exit(stubDNS())
	case "braid":
		exit(stubCNI())
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// stubAgent writes a CNI configuration and says it is ready.
func stubAgent(args []string) error {
	flag := func(name string) string { return args[slices.Index(args, name)+1] }
	list := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "stub", "plugins": [{"type": "braid", "dir": %q}]}`, flag("--state-dir"))
	if err := writeFile(filepath.Join(flag("--cni-conf-dir"), "10-braid.conflist"), []byte(list)); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(flag("--run-dir"), "ready"), nil); err != nil {
		return err
	}
	path := filepath.Join(flag("--run-dir"), "netagent.sock")
	_ = os.Remove(path) // of one that was killed
	socket, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go http.Serve(socket, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		r := status.Report{Synced: true, Current: time.Now()}
		_ = r.JSON(w)
	}))
	return http.ListenAndServe(agentHTTP, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
}

// stubDNS answers every query with the address of kube-dns.
func stubDNS() error {
	if os.Getenv("BRAID_MANIFESTS") == "" {
		return errors.New("BRAID_MANIFESTS is not set")
	}
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil || !strings.Contains(string(resolv), ipv4.outside.String()) {
		return fmt.Errorf("resolv.conf of the node: %q, %w", resolv, err)
	}
	return dns.ListenAndServe(":53", "udp", dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: 1}, A: ipv4.dns.AsSlice()}}
		_ = w.WriteMsg(m)
	}))
}

// stubCNI gives the pod a link with an address; it refuses to run anywhere but inside a node.
func stubCNI() error {
	if os.Getenv("CNI_COMMAND") != "ADD" {
		return nil
	}
	if _, err := netlink.LinkByName(nodeIf); err != nil {
		return fmt.Errorf("the plugin does not run in the node's namespace: %w", err)
	}
	var conf struct{ Dir string }
	if err := json.NewDecoder(os.Stdin).Decode(&conf); err != nil {
		return err
	}
	taken, _ := filepath.Glob(filepath.Join(conf.Dir, "pod-*"))
	addr := fmt.Sprintf("10.244.9.%d/24", len(taken)+2)
	if err := os.WriteFile(filepath.Join(conf.Dir, "pod-"+os.Getenv("CNI_CONTAINERID")), nil, 0o644); err != nil {
		return err
	}
	err := inNS(os.Getenv("CNI_NETNS"), func() error {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: os.Getenv("CNI_IFNAME")}, PeerName: "peer"}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr)
		return errors.Join(err, netlink.AddrAdd(link, a), netlink.LinkSetUp(link))
	})
	if err == nil {
		fmt.Printf(`{"cniVersion": "1.0.0", "ips": [{"address": %q}]}`, addr)
	}
	return err
}
