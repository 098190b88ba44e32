package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// tools are programs of this machine that the tests call. BusyBox has some of the names too, with fewer
// options, and its shell takes its own before those in $PATH.
var tools = []string{"sh", "ip", "nft", "bridge", "ping", "tc"}

// modules are the folders of the kernel's that may hold what the tests need.
var modules = []string{"kernel/net", "kernel/drivers/net", "kernel/lib", "kernel/crypto", "kernel/arch/x86/crypto"}

// root is what a guest's file system is made of.
type root struct {
	dir   string // with the unpacked packages
	bin   string // with the programs under test
	test  string // the agent's tests
	tests string // the script that runs everything
}

// pack writes the guest's files as an initial RAM file system.
func pack(to string, r root) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	a := &archive{w: bufio.NewWriter(f), made: map[string]bool{}}
	a.file("init", 0o755, []byte(script))
	a.file("run-tests", 0o644, []byte(r.tests))
	a.file("pods.yaml", 0o644, []byte(pods))
	a.file("etc/nsswitch.conf", 0o644, []byte("hosts: files dns\n"))
	for _, name := range []string{"etc/resolv.conf", "etc/hosts"} {
		a.file(name, 0o644, nil) // the playground shows its own there
	}
	a.copy(filepath.Join(r.dir, "bin/busybox"), "bin/busybox")
	a.copy(r.test, "bin/agent.test")
	for _, program := range []string{"netagent", "coredns", "braid"} {
		a.copy(filepath.Join(r.bin, program), "opt/braid/"+program)
	}
	a.copy("Corefile.example", "opt/Corefile.example")
	for _, name := range tools {
		a.tool(name)
	}
	a.modules(filepath.Join(r.dir, "lib/modules"))
	a.entry("TRAILER!!!", 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}

// archive writes the format newc of cpio, the kernel's for initial RAM file systems
// (Documentation/driver-api/early-userspace/buffer-format.rst). The first error stays in err.
type archive struct {
	w    *bufio.Writer
	made map[string]bool
	ino  int
	err  error
}

const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
)

func (a *archive) entry(name string, mode int, data []byte) {
	a.ino++
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	for _, part := range [][]byte{append([]byte(head+name), 0), data} {
		size := len(part)
		if _, err := a.w.Write(part); err != nil && a.err == nil {
			a.err = err
		}
		_, _ = a.w.Write(make([]byte, (4-size%4)%4)) // an error stays in the writer until Flush
	}
}

// parents makes the folders above a path that were not made yet.
func (a *archive) parents(path string) {
	if dir := filepath.Dir(path); dir != "." && !a.made[dir] {
		a.parents(dir)
		a.made[dir] = true
		a.entry(dir, modeDir|0o755, nil)
	}
}

func (a *archive) file(path string, mode int, data []byte) {
	if a.made[path] {
		return
	}
	a.made[path] = true
	a.parents(path)
	a.entry(path, modeFile|mode, data)
}

func (a *archive) copy(from, to string) {
	data, err := os.ReadFile(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.file(to, 0o755, data)
}

var library = regexp.MustCompile(`(/\S+) \(0x`)

// tool packs a program of this machine with the libraries that it is linked to.
func (a *archive) tool(name string) {
	path, err := exec.LookPath(name)
	if err == nil {
		a.copy(path, "usr/bin/"+name)
		var out []byte
		out, err = exec.Command("ldd", path).Output()
		for _, m := range library.FindAllStringSubmatch(string(out), -1) {
			a.copy(m[1], strings.TrimPrefix(m[1], "/"))
		}
	}
	if err != nil && a.err == nil {
		a.err = fmt.Errorf("%s: %w", name, err)
	}
}

// modules packs the parts of the kernel that are loaded on demand.
func (a *archive) modules(dir string) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		_, inside, _ := strings.Cut(rel, "/")
		wanted := slices.ContainsFunc(modules, func(m string) bool { return strings.HasPrefix(inside, m+"/") })
		if wanted && !strings.Contains(inside, "/ethernet/") || strings.HasPrefix(inside, "modules.") {
			a.copy(path, "lib/modules/"+rel)
		}
		return nil
	})
	if err == nil && !bytes.Contains([]byte(fmt.Sprint(a.made)), []byte("ipip.ko")) {
		err = fmt.Errorf("%s holds no kernel module ipip", dir)
	}
	if err != nil && a.err == nil {
		a.err = err
	}
}
