# Lua files as C data.
#
#   include(src/lunacos/embed.cmake)
#   lunacos_embed(TARGET LUA_DIR)      adds LUA_DIR/nacos/**.lua to the executable TARGET as the table of embed.h
#
# The same file, run as a script at build time, writes that table whenever one of the Lua files has changed.

if(CMAKE_SCRIPT_MODE_FILE)
  set(arrays "")
  set(table "")
  set(number 0)
  file(STRINGS ${LIST} files)
  foreach(file IN LISTS files)
    file(RELATIVE_PATH name ${ROOT} ${file})
    string(REGEX REPLACE "(/init)?\\.lua$" "" module ${name})
    string(REPLACE "/" "." module ${module})
    file(READ ${file} bytes HEX)
    string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
    string(APPEND arrays "static const unsigned char file_${number}[] = {${bytes}0};\n")
    string(APPEND table "    {\"${module}\", \"@${name}\", (const char *)file_${number}, sizeof file_${number} - 1},\n")
    math(EXPR number "${number} + 1")
  endforeach()
  file(WRITE ${OUT} "#include \"embed.h\"\n\n${arrays}\nconst struct embed_file embed_files[] = {\n${table}    {NULL, NULL, NULL, 0},\n};\n")
  return()
endif()

set(LUNACOS_EMBED_SCRIPT ${CMAKE_CURRENT_LIST_FILE})

function(lunacos_embed target lua_dir)
  file(GLOB_RECURSE files CONFIGURE_DEPENDS ${lua_dir}/nacos/*.lua)
  set(list ${CMAKE_CURRENT_BINARY_DIR}/embed.list)
  set(out ${CMAKE_CURRENT_BINARY_DIR}/embed.c)
  list(JOIN files "\n" lines)
  file(CONFIGURE OUTPUT ${list} CONTENT "${lines}\n" @ONLY)
  add_custom_command(
    OUTPUT ${out}
    COMMAND ${CMAKE_COMMAND} -DROOT=${lua_dir} -DLIST=${list} -DOUT=${out} -P ${LUNACOS_EMBED_SCRIPT}
    DEPENDS ${files} ${list} ${LUNACOS_EMBED_SCRIPT}
    COMMENT "Embedding the Lua files")
  get_filename_component(dir ${LUNACOS_EMBED_SCRIPT} DIRECTORY)
  target_sources(${target} PRIVATE ${out})
  target_include_directories(${target} PRIVATE ${dir})
endfunction()
