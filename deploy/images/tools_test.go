package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// debianTools returns iptables from Debian's packages, for the machine that the test runs on.
func debianTools(t *testing.T) []file {
	t.Helper()
	d := machineDebian(t)
	toolsOnce.Do(func() {
		var packages []string
		if toolsOfDebian, packages, errTools = iptablesFiles(d.open); errTools != nil {
			t.Logf("without the packages: %v", errTools)
			toolsOfDebian, packages, errTools = iptablesFiles(d.installed)
		}
		if !slices.Contains(packages, "libc6") || slices.Contains(packages, "netbase") {
			t.Errorf("files of the packages %v", packages)
		}
	})
	if errTools != nil {
		t.Fatal(errTools)
	}
	return toolsOfDebian
}

var (
	toolsOnce     sync.Once
	toolsOfDebian []file
	errTools      error
)

func machineDebian(t *testing.T) *debian {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	arch, err := exec.Command("dpkg", "--print-architecture").Output()
	if err != nil {
		t.Skipf("skipped: Debian's packages can be had on Debian only: %v", err)
	}
	d, err := newDebian(filepath.Join(cache, "braid-images"), strings.TrimSpace(string(arch)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// With nothing but the files of the image, both variants run for both families, and every extension finds
// the libraries it is linked to.
func TestIPTablesRunsOutOfTheImage(t *testing.T) {
	nstest.RequireRoot(t)
	list := debianTools(t)
	data, _, err := files(list, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := unpack(data, root); err != nil {
		t.Fatal(err)
	}
	ns := nstest.New(t)
	run := func(argv ...string) (string, error) {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.SysProcAttr, cmd.Dir, cmd.Env = &syscall.SysProcAttr{Chroot: root}, "/", []string{}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := ns.Start(cmd)
		if err == nil {
			err = cmd.Wait()
		}
		return out.String(), err
	}
	for _, p := range iptablesPrograms() {
		want := "(nf_tables)"
		if strings.Contains(p, "-legacy") {
			want = "(legacy)"
		}
		if out, err := run("/"+p, "--version"); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v %s", p, err, out)
		}
	}
	tried := 0
	for _, f := range list {
		if !isExtension(f.to) {
			continue
		}
		base := strings.TrimSuffix(path.Base(f.to), ".so")
		kind, name, _ := strings.Cut(base, "_")
		tool := "/usr/sbin/iptables-nft"
		if kind == "libip6t" {
			tool = "/usr/sbin/ip6tables-nft"
		}
		use := "-m"
		if name == strings.ToUpper(name) {
			use = "-j"
		}
		if name == "NAT" || name == "standard" {
			continue // hold others: SNAT, DNAT, … are links to the one, ACCEPT, … are in the other
		}
		if out, err := run(tool, use, name, "--help"); err != nil {
			t.Errorf("%s %s %s: %v\n%s", tool, use, name, err, tail(out))
		}
		tried++
	}
	if tried < 90 {
		t.Errorf("only %d extensions", tried)
	}
}

func tail(text string) string { return text[max(0, len(text)-300):] }

// A dependency that is not declared is noticed when the image is made, not when somebody needs it.
func TestMissingLibrary(t *testing.T) {
	d := machineDebian(t)
	_, _, err := iptablesFiles(func(names []string) (map[string]entry, []string, error) {
		files, depends, err := d.installed(names)
		return files, slices.DeleteFunc(depends, func(p string) bool { return p == "libmnl0" || p == "libc6" }), err
	})
	if err == nil || !strings.Contains(err.Error(), "libmnl.so.0") || !strings.Contains(err.Error(), "ld-linux") {
		t.Errorf("without libmnl0 and libc6: %v", err)
	}
	_, _, err = iptablesFiles(func([]string) (map[string]entry, []string, error) { return nil, nil, nil })
	if err == nil || !strings.Contains(err.Error(), "usr/sbin/iptables-nft") {
		t.Errorf("without programs: %v", err)
	}
	broken := errors.New("no network")
	if _, _, err = iptablesFiles(func([]string) (map[string]entry, []string, error) { return nil, nil, broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
}

// What is installed here is as good as the packages, for those who have no network: the same files.
func TestInstalled(t *testing.T) {
	want, d := debianTools(t), machineDebian(t)
	got, packages, err := iptablesFiles(d.installed)
	if err != nil {
		t.Skipf("skipped: iptables is not installed: %v", err)
	}
	release := regexp.MustCompile(`(\.so\.\d+)\.[0-9.]+`) // what is installed may be older
	names := func(list []file) (out []string) {
		for _, f := range list {
			out = append(out, release.ReplaceAllString(fmt.Sprintf("%s %s %o", f.to, f.link, f.mode), "$1"))
		}
		return out
	}
	if !slices.Equal(names(got), names(want)) || !slices.Contains(packages, "libc6") {
		t.Errorf("installed\n%v\nin the packages\n%v", names(got), names(want))
	}
	foreign := *d
	foreign.arch = "riscv64"
	if _, _, err := foreign.installed([]string{iptablesPackage}); err == nil || !strings.Contains(err.Error(), "not riscv64") {
		t.Errorf("of another architecture: %v", err)
	}
}

func TestUnknownPackage(t *testing.T) {
	d := machineDebian(t)
	d.lists = []string{"-o", "Dir::Cache=" + t.TempDir()} // the machine's, but no others are tried after them
	if err := d.download([]string{"no-such-package"}); err == nil || !strings.Contains(err.Error(), "no-such-package") {
		t.Errorf("%v", err)
	}
}

func TestDebianFields(t *testing.T) {
	got := paragraphs("Package: a\nVersion: 1:2-3\nDescription: x\n Package: not\n\nPackage: b\nDepends: c (>= 1), d:any | e, f\n\n")
	if len(got) != 2 || got[0]["Package"] != "a" || got[0]["Version"] != "1:2-3" || got[1]["Package"] != "b" {
		t.Errorf("%v", got)
	}
	if deps := dependencies(got[1]["Depends"]); !slices.Equal(deps, []string{"c", "d", "f"}) || dependencies("") != nil {
		t.Errorf("%v", deps)
	}
	for in, want := range map[string]string{"./lib/x/libc.so.6": "usr/lib/x/libc.so.6", "lib64/ld.so": "usr/lib64/ld.so",
		"./usr/lib/x": "usr/lib/x", "sbin/a": "usr/sbin/a", "./etc/a": "etc/a", "library/a": "library/a"} {
		if got := merged(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// What -folders lays out for the Dockerfile is what the archives hold: names, modes, contents, links and
// capabilities.
func TestFoldersAreTheImages(t *testing.T) {
	nstest.RequireRoot(t)
	o := programs(t)
	o.tools = debianTools(t)
	for _, s := range specs(o) {
		data, err := s.make(o.tag)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := readBack(t, data, s.reference(o.tag)).Layers()
		if err != nil {
			t.Fatal(err)
		}
		folders := o
		folders.folders = t.TempDir()
		if err := pack(folders, s, time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
		want, got := layerFiles(t, layers[0]), folderFiles(t, filepath.Join(folders.folders, s.name))
		if !maps.Equal(got, want) {
			t.Errorf("%s: folder\n%v\narchive\n%v", s.name, got, want)
		}
		if s.name == "netagent" && (got["usr/sbin/iptables-nft"] != "-> xtables-nft-multi" || len(got) < 150) {
			t.Errorf("%d files, iptables-nft %q", len(got), got["usr/sbin/iptables-nft"])
		}
		if s.name == "coredns" && !strings.HasSuffix(got["coredns"], fmt.Sprintf("caps %x", fileCapability(capNetBindService))) {
			t.Errorf("coredns: %s", got["coredns"])
		}
	}
}

// folderFiles describes the files below a folder as layerFiles does.
func folderFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(p, dir+"/")
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(p)
			out[name] = "-> " + link
			return err
		case d.IsDir():
			out[name] = info.Mode().String()
			return nil
		}
		content, err := os.ReadFile(p)
		out[name] = describeFile(info.Mode(), content, attribute(t, p))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// On a machine without apt the agent's image is made without iptables, and its variable lets the agent say so.
func TestWithoutDebian(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	o := programs(t)
	o.iptables, o.cache = true, t.TempDir()
	if err := run(o); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(o.out, "netagent.tar"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := readBack(t, data, "docker.io/braidnet/netagent:dev").ConfigFile()
	if err != nil || !slices.Contains(cfg.Config.Env, "BRAID_IMAGE=nftables") {
		t.Errorf("%v %v", cfg.Config.Env, err)
	}
	if list, err := tools(o); err != nil || list != nil {
		t.Errorf("%d files, %v", len(list), err)
	}
}
